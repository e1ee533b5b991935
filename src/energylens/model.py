"""The fitted model: coefficients with their spread, predictions, draws and intervals."""

from __future__ import annotations

import weakref
from collections.abc import Collection, Iterable, Mapping, Sequence
from dataclasses import dataclass, field, replace
from typing import TYPE_CHECKING, Any

import numpy as np
from numpy.typing import NDArray

from energylens import catalog, factors
from energylens.cases import Cases, FloatArray
from energylens.clocks import JOULES_SPREAD, log_variance
from energylens.counts import count_in_chunks, in_flight
from energylens.factors import Factors
from energylens.formula import (
    OVERLAPS,
    STRUCTURE,
    Term,
    _readers,
    counts_for,
    datasheet,
    design,
    design_by_phase,
    energy,
    power_ratio,
    slopes,
    terms_of,
)
from energylens.records import Engine, Precision, Source
from energylens.viewing import Shown, shown_by
from energylens.words import Note, percent

if TYPE_CHECKING:
    from energylens.latency import TimeModel

# Share of the variance of residuals that configurations far apart do not have in common. With 1
# they would be drawn to differ as they do, and a part of that the drawn coefficients bring along
# already; but the law orders better than errors of that size would let it: with this share stated
# probabilities come true (docs/results.md).
OWN_RATIO = 0.36

# How far the coefficients of a GPU type that no row speaks of may lie from the fitted ones, in
# units of each term's spread; half as far as those of one with rows may (docs/results.md).
UNSEEN_GPU_SPREAD = 0.25
UNSEEN_ENGINE_SPREAD = 0.5  # the same of an engine version: as far as one with rows may
WIDE = "16 bits"  # the kind of format that is no narrow one
WIDE_RATIO = 2.0  # of an upper end over the point, from which on the GPUs' TDP is asked
WIDEST_LOG = float(np.log(1e6))  # an interval that wide says that nothing is known, as any wider

REMEMBERED = 16  # predictions that a model keeps

LABEL_DOUBLINGS = 2.0  # how far apart another GPU type, precision or LLM is, as `knob_place` counts

LOOSE_RATIO = 0.5  # of a coefficient: an interval that reaches below determines it loosely
NORMAL_80 = 1.2816  # half width of a central 80 % interval, in standard deviations


@dataclass(frozen=True, kw_only=True, eq=False)
class Coefficients:
    """One fitted set of the twelve, with what the fit left uncertain.

    Attributes
    ----------
    theta : ndarray, shape (12,)
        Ratios to the datasheet's expectation.
    covariance : ndarray, shape (12, 12)
        Of ``theta``, before the bound at 0.
    residuals_seen, residuals_unseen : ndarray
        Sorted ``log(measured / predicted)`` of rows left out of the fit one by one, and with
        all rows of their LLM's architecture: what to expect for LLMs in and out of the fit.
        Each divided by its :func:`widening`, so that they are those of known coefficients.
    llms : int
        Architectures left out: as many of the unseen residuals are independent of each other.
    spread_ratio : float
        Standard deviation of a residual with known coefficients.
    design_effect : float
        How much larger than ``covariance`` says that of the coefficients is, because rows of one
        LLM err alike.
    within_ratio, between_ratio : float
        Standard deviation of those logs inside one scenario, and of its mean over scenarios.
    reach_doublings : float
        Distance of configurations, in doublings of their knobs, at which their residuals have
        lost all but 1/e of the correlation that distance takes away.
    rows : int
        Rows fitted.
    factors : Factors
        What the residuals of the rows say of LLMs and formats.
    format_scales : mapping of str to (float, float)
        Scale of the residuals, seen and unseen, of rows in one kind of format over that of all.
    """

    theta: FloatArray
    covariance: FloatArray
    residuals_seen: FloatArray
    residuals_unseen: FloatArray
    llms: int
    spread_ratio: float
    design_effect: float
    within_ratio: float
    between_ratio: float
    reach_doublings: float
    rows: int
    factors: Factors = field(default_factory=factors.none)
    format_scales: Mapping[str, tuple[float, float]] = field(default_factory=dict)

    def interval_80(self) -> tuple[FloatArray, FloatArray]:
        """Lower and upper end of each coefficient's 80 % interval, 0 or more; shape (12,) each."""
        reach = NORMAL_80 * np.sqrt(np.diag(self.covariance))
        return np.maximum(self.theta - reach, 0.0), self.theta + reach

    def determined(self, terms: Sequence[Term], undetermined: Collection[str]) -> list[str]:
        """Say how well rows determine each coefficient: ``no``, ``at bound``, ``loosely``, ``yes``.

        ``undetermined`` names those of which no row speaks. Loosely: the 80 % interval reaches
        down to half of the coefficient or less.
        """
        low = self.interval_80()[0]
        return [
            "no"
            if term.name in undetermined
            else "at bound"
            if self.theta[k] <= term.lower_bound
            else "loosely"
            if low[k] <= LOOSE_RATIO * self.theta[k]
            else "yes"
            for k, term in enumerate(terms)
        ]


@dataclass(frozen=True, kw_only=True)
class Scope:
    """Which cases the rows of a fit are of."""

    llms: tuple[str, ...]
    gpus: tuple[str, ...]
    precisions: tuple[str, ...]
    ranges: Mapping[str, tuple[float, float]] = field(default_factory=dict)
    engines: Mapping[str, Scope] = field(default_factory=dict)  # the same of each version's rows


@dataclass(frozen=True, kw_only=True, eq=False, repr=False)
class EnergyModel(Shown):
    """The fitted law: a Predictor with intervals.

    ``groups`` holds coefficients of their own for the values of the columns named in ``per``
    ("gpu", "llm", "precision", "engine"; joined by a space), each shrunk toward ``pooled``, which
    answers for every other case. With "engine" among them, each engine version has a set by itself
    (not shrunk toward other versions), groups within it, and there are groups without the engine,
    which answer where it is unknown or was not seen. ``travel`` holds the coefficients that answer
    for GPU types without rows, by engine version ("" for all) and kind of format: those of
    hardware stay close to the datasheet, as what rows of one type say does not carry to another.
    """

    pooled: Coefficients
    scope: Scope
    per: tuple[str, ...] = ()
    groups: Mapping[str, Coefficients] = field(default_factory=dict)
    travel: Mapping[str, Coefficients] = field(default_factory=dict)
    structure: str = STRUCTURE
    dataset_digest: str = ""
    sources: Mapping[str, int] = field(default_factory=dict)
    options: Mapping[str, str] = field(default_factory=dict)
    measured_power: bool = False
    extensions: tuple[str, ...] = ()
    energylens_version: str = ""
    time: TimeModel | None = None  # seconds of the same rows, where they had any
    #: Watts of a GPU with weights loaded and no request, by type, where the rows told.
    loaded_idle_w: Mapping[str, float] = field(default_factory=dict)

    @property
    def caution(self) -> str:
        """Say so where rows of the fit carry no accuracy claim, or it misses them; else empty."""
        rows = sum(self.sources.values())
        unfit = [
            f"{count} of {rows} rows of the fit are {name}: nothing here is "
            "a claim about real GPUs."
            for name, count in self.sources.items()
            if not Source(name).carries_accuracy_claim
        ]
        if miss := self.options.get("misfit_ratio"):
            by = f"{percent(float(miss), 0)}" if float(miss) < 10 else "more than 1000 %"
            unfit.append(
                f"The fit misses half of its own rows by {by}: its error is beyond use, "
                "do not choose by it."
            )
        return " ".join(unfit)

    @property
    def terms(self) -> tuple[Term, ...]:
        """The twelve, then those of the extensions."""
        return terms_of(self.extensions)

    def latex(self) -> str:
        r"""Typeset the fitted law with its numbers: an ``align`` environment of LaTeX.

        The law, then each coefficient with its 80 % interval, and the joules that one count
        costs on each GPU type of the fit.
        """
        typeset: str = shown_by().latex(self)
        return typeset

    def coefficients(self, llm: str, gpu: str, precision: str, engine: str) -> Coefficients:
        """Return the set that answers for one LLM, GPU type, precision and engine, by id."""
        if self.travel and self.scope.gpus and gpu not in self.scope.gpus:
            named = self._answering(engine) if "engine" in self.per else ""
            wide = catalog.precision(precision).weight_bits >= 16
            keys = (*([group_key([named, WIDE])] if wide else ()), named, "")
            return next(self.travel[key] for key in keys if key in self.travel)
        engine = self._answering(engine)
        names = {"llm": llm, "gpu": gpu, "precision": precision}
        columns = [names[name] for name in self.per if name != "engine"]
        named = engine if "engine" in self.per else ""
        for key in (group_key([*columns, named]), named, group_key(columns)):
            if key in self.groups:
                return self.groups[key]
        return self.pooled

    def _answering(self, engine: str) -> str:
        """Engine whose rows answer: where one is named without a version, its only version."""
        return only_version(engine, self.scope.engines)

    def scope_of(self, engine: str) -> Scope:
        """Which cases the rows that answer for an engine speak of: its own, where it has some."""
        engine = self._answering(engine)
        return self.scope.engines.get(engine, self.scope) if "engine" in self.per else self.scope

    def _sets(self, cases: Cases) -> tuple[list[Coefficients], NDArray[np.intp]]:
        """Distinct coefficient sets, and the place of each case's set among them."""
        if not (self.groups or self.travel) or not len(cases):
            return [self.pooled], np.zeros(len(cases), dtype=np.intp)
        ids, index = _combinations(cases)
        answers = [self.coefficients(*names) for names in ids]
        distinct = {id(answer): answer for answer in answers}
        place = {key: number for number, key in enumerate(distinct)}
        of_each = np.array([place[id(answer)] for answer in answers], dtype=np.intp)
        return list(distinct.values()), of_each[index]

    def predict_energy_j(self, cases: Cases) -> FloatArray:
        """Predict joules per request, shape (n,); the last cases asked about are remembered."""
        # Whoever reports asks several times about one and the same table.
        remembered: tuple[tuple[Any, FloatArray], ...] = self.__dict__.get("_last", ())
        for asked, joules in remembered:
            if asked() is cases:
                return joules.copy()
        joules = self._predict(cases)
        entry = (weakref.ref(cases), joules)
        object.__setattr__(self, "_last", (entry, *remembered[: REMEMBERED - 1]))
        return joules.copy()

    def __getstate__(self) -> dict[str, Any]:
        return {name: value for name, value in self.__dict__.items() if name != "_last"}

    def _predict(self, cases: Cases) -> FloatArray:
        sets, set_index = self._sets(cases)
        # theta x D for each (coefficient set, GPU type): one number per term and case below.
        terms = self.terms
        scale = np.array([s.theta for s in sets])[:, None, :] * datasheet(cases.gpus, terms)[None]
        overlapping = [_readers(terms, pair) for pair in OVERLAPS]
        adding = _readers(
            terms, [k for k in range(len(terms)) if not any(k in pair for pair in OVERLAPS)]
        )
        joules = np.empty(len(cases))
        # Mostly one set and one GPU type answer for all: then coefficients are plain numbers.
        single = len(cases) > 0 and np.ptp(set_index) == 0 and np.ptp(cases.gpu_index) == 0
        only = scale[set_index[0], cases.gpu_index[0]] if single else None
        held = bool(cases.clocked.any() or ("power_cap" in self.extensions and cases.capped.any()))
        for rows, counts in count_in_chunks(cases, extensions=bool(self.extensions)):
            if held:
                counts = counts_for(terms, cases.take(rows), counts)
            here = only if only is not None else scale[set_index[rows], cases.gpu_index[rows]].T
            total = np.zeros(len(counts.gpus))
            for k, read in adding:
                if not single or here[k]:
                    total += here[k] * read(counts)
            for members in overlapping:
                squares = np.zeros(len(total))
                for k, read in members:
                    squares += (here[k] * read(counts)) ** 2
                total += np.sqrt(squares)
            joules[rows] = total
        joules *= np.exp(self._factors(cases, sets, set_index)[0])
        return joules * power_ratio(cases) if self.measured_power else joules

    def _factors(
        self, cases: Cases, sets: list[Coefficients], set_index: NDArray[np.intp]
    ) -> tuple[FloatArray, FloatArray]:
        """Logarithm of each case's factor, and its variance; each of shape (n,)."""
        logs, variance = np.zeros(len(cases)), np.zeros(len(cases))
        for s, coefficients in enumerate(sets):
            if coefficients.factors.keys:
                mine = np.flatnonzero(set_index == s)
                logs[mine], variance[mine] = coefficients.factors.logs(cases.take(mine))
        return logs, variance

    def choosing(self, freed: Collection[str]) -> EnergyModel:
        """Return the model to choose by, where ``freed`` knobs may take several values.

        Factors of what is free would decide by how few rows happened to be of each value: they are
        integrated out, which leaves the law's own order.

        Parameters
        ----------
        freed : collection of str
            Names from :data:`energylens.dataset.KNOBS`.
        """
        kinds = {"precision", "architecture_precision"} if "precision" in freed else set()
        return self._without(kinds) if kinds else self

    def without_factors(self) -> EnergyModel:
        """Return the law alone: factors were found in batches as full as those of the rows."""
        return self._without(set(factors.SPREADS))

    def _without(self, kinds: Collection[str]) -> EnergyModel:
        sets = (self.pooled, *self.groups.values(), *self.travel.values())
        if not any(kind in kinds for c in sets for kind, _ in c.factors.keys):
            return self

        def less(c: Coefficients) -> Coefficients:
            return replace(c, factors=c.factors.without(kinds))

        return replace(
            self,
            pooled=less(self.pooled),
            groups={key: less(c) for key, c in self.groups.items()},
            travel={key: less(c) for key, c in self.travel.items()},
        )

    def predict_parts_j(self, cases: Cases) -> tuple[FloatArray, FloatArray]:
        """Joules per request, term by term, of prefill and of decode; each of shape (n, 12).

        Overlapping terms get their share of the root of squares, so that all parts add up to
        the prediction.
        """
        sets, set_index = self._sets(cases)
        theta = np.array([s.theta for s in sets])[set_index]
        prefill, decode = design_by_phase(cases, self.terms)
        ratio = np.exp(self._factors(cases, sets, set_index)[0])[:, None]
        if self.measured_power:
            ratio = ratio * power_ratio(cases)[:, None]
        prefill, decode = prefill * ratio, decode * ratio
        return slopes(prefill, theta) * theta, slopes(decode, theta) * theta

    def interval_energy_j(
        self, cases: Cases, coverage_ratio: float = 0.8
    ) -> tuple[FloatArray, FloatArray]:
        """Lower and upper joules that a new measurement lies between, each of shape (n,).

        Conformal: the quantiles are those of rows that a fit without them (or, for an LLM the
        fit has not seen, without any row of its architecture) mispredicted, wider or narrower
        as the coefficients are more or less certain about the case than they were about those.
        """
        joules = self.predict_energy_j(cases)
        sets, set_index = self._sets(cases)
        known = np.array(
            [[m.id in self.scope_of(e.id).llms for m in cases.llms] for e in cases.engines]
        ).reshape(len(cases.engines), len(cases.llms))[cases.engine_index, cases.llm_index]
        tails = np.array(
            [
                [
                    conformal_quantiles(s.residuals_unseen, coverage_ratio, s.llms),
                    conformal_quantiles(s.residuals_seen, coverage_ratio),
                ]
                for s in sets
            ]
        )[set_index, known.astype(np.intp)]
        logs = self._widening(cases, joules, sets, set_index) * tails
        logs *= self._format_scales(cases, sets, set_index, known)[:, None]
        # Rows left out may all have cost more, or less, than predicted: the point stays inside.
        low = np.clip(logs[:, 0], -WIDEST_LOG, 0.0)
        most = joules * np.exp(np.clip(logs[:, 1], 0.0, WIDEST_LOG))
        # However uncertain: no more than all GPUs at their TDP for as long as it may take.
        wide = np.flatnonzero(most > WIDE_RATIO * joules)
        if self.time is not None and len(wide):
            bound = self.time.most_j(cases.take(wide), (1.0 + coverage_ratio) / 2.0)
            # Not below what the narrower intervals keep: those of more coverage hold the others.
            most[wide] = np.minimum(most[wide], np.maximum(bound, WIDE_RATIO * joules[wide]))
        return joules * np.exp(low), most

    def _format_scales(
        self,
        cases: Cases,
        sets: list[Coefficients],
        set_index: NDArray[np.intp],
        known: NDArray[np.bool_],
    ) -> FloatArray:
        """Scale of each case's residuals by its kind of format; where no row is of it, the largest.

        Shape (n,).
        """
        scale = np.ones(len(cases))
        kinds = format_kinds(cases)
        for s, coefficients in enumerate(sets):
            scales = coefficients.format_scales
            if not scales:
                continue
            for kind in set(kinds):
                largest = tuple(map(max, zip(*scales.values(), strict=True)))
                seen, unseen = scales.get(kind, largest)
                mine = (set_index == s) & (kinds == kind)
                scale[mine] = np.where(known[mine], seen, unseen)
        return scale

    def _widening(
        self,
        cases: Cases,
        joules: FloatArray,
        sets: list[Coefficients],
        set_index: NDArray[np.intp],
    ) -> FloatArray:
        """Spread below and above over that of a residual with known coefficients, shape (n, 2)."""
        spread = np.array([s.spread_ratio for s in sets])[set_index]
        variance = self._log_variances(cases, joules, sets, set_index)
        widening: FloatArray = np.sqrt(1.0 + variance / spread[:, None] ** 2)
        return widening

    def log_variance(self, cases: Cases) -> FloatArray:
        """Variance of the logarithm of each prediction, shape (n,): what the fit left uncertain.

        That of a new measurement comes on top (`interval_energy_j` has both).
        """
        sets, set_index = self._sets(cases)
        joules = self.predict_energy_j(cases)
        return self._log_variances(cases, joules, sets, set_index)[:, 1]

    def _log_variances(
        self,
        cases: Cases,
        joules: FloatArray,
        sets: list[Coefficients],
        set_index: NDArray[np.intp],
    ) -> FloatArray:
        """Variance of the logarithm of each prediction, of joules that are fewer and more.

        Shape (n, 2). That of the coefficients and that of the factors. A GPU type or engine that no
        row speaks of may have coefficients of its own besides: each as far from the fitted ones as
        ``UNSEEN_GPU_SPREAD`` or ``UNSEEN_ENGINE_SPREAD`` of its term's spread. An engine not named
        is one of those seen. No coefficient lies below 0, so none takes away more than its term.
        """
        logs, of_factors = self._factors(cases, sets, set_index)
        x = design(cases, self.terms) * np.exp(logs)[:, None]
        if self.measured_power:
            x = x * power_ratio(cases)[:, None]
        apart = self._strangeness(cases)
        spreads = np.array([term.spread for term in self.terms])
        variance = np.zeros((len(cases), 2))
        for s, coefficients in enumerate(sets):
            mine = set_index == s
            theta, covariance = (
                coefficients.theta,
                coefficients.design_effect * coefficients.covariance,
            )

            def of(steep: FloatArray, covariance: FloatArray = covariance) -> FloatArray:
                found: FloatArray = np.einsum("ij,ij->i", steep @ covariance, steep)
                return found

            steep = slopes(x[mine], theta) / joules[mine, None]
            strangers = apart[mine, None] * spreads
            above = of(steep)
            # Where errors cancel, capping one of them would uncover the other.
            below = np.minimum(above, of(steep * share_of_term(theta, covariance)))
            variance[mine, 0] = below + ((steep * np.minimum(strangers, theta)) ** 2).sum(axis=1)
            variance[mine, 1] = above + ((steep * strangers) ** 2).sum(axis=1)
        return variance + (of_factors + self._of_limits(cases))[:, None]

    def clock_notes(self, *, locked: bool) -> tuple[str, ...]:
        """Say what stands behind an answer about locked clocks, where no row does."""
        if not locked or "clock_ratio" in self.scope.ranges:
            return ()
        said = (
            "What a locked clock does is physics alone (docs/formula.md), for no row of the fit "
            "has one: the interval is wider the lower the clock."
        )
        brief = "No row of the fit has a locked clock: what one does is physics alone."
        return (Note(said, rank=Note.UNSEEN, brief=brief),)

    def _of_limits(self, cases: Cases) -> FloatArray:
        """Variance of the logarithm that clocks and caps beyond those of the rows leave open; (n,).

        A GPU keeps to a cap by lowering its clock: where no row has one, it leaves as much open.
        """
        lowest = self.scope.ranges.get("clock_ratio", (1.0, 1.0))[0]
        variance = log_variance(cases, JOULES_SPREAD, lowest)
        if "power_cap" not in self.extensions:
            variance = variance + (JOULES_SPREAD * np.log(cases.cap_ratio)) ** 2
        return variance

    def _strangeness(self, cases: Cases) -> FloatArray:
        """How far coefficients of a GPU type or engine without rows may lie from the fitted ones.

        In units of each term's spread, shape (n,); 0 where rows speak of both.
        """
        engines, known = self.scope.engines, bool(self.scope.gpus)
        new_engine = np.array(
            [bool(engines and e.id) and not known_engine(e, engines) for e in cases.engines]
        )
        new_gpu = np.array(
            [
                [known and g.id not in self.scope_of(e.id).gpus for g in cases.gpus]
                for e in cases.engines
            ]
        ).reshape(len(cases.engines), len(cases.gpus))
        gpu_part = UNSEEN_GPU_SPREAD * new_gpu[cases.engine_index, cases.gpu_index]
        engine_part = UNSEEN_ENGINE_SPREAD * new_engine[cases.engine_index]
        return np.hypot(gpu_part, engine_part)

    def sample_energy_j(self, cases: Cases, samples: int, seed: int) -> FloatArray:
        """Draw joint predictions, shape (samples, n).

        Coefficients from their covariance (not below 0), those of each GPU type or engine without
        rows farther off by as much as they may be; for each LLM in each format a factor; and for
        each case one from the spread of residuals: a part of its variance is common to all cases,
        the rest to configurations that are close.
        """
        rng = np.random.default_rng(seed)
        sets, set_index = self._sets(cases)
        logs, of_factors = self._factors(cases, sets, set_index)
        x = design(cases, self.terms) * np.exp(logs)[:, None]
        if self.measured_power:
            x = x * power_ratio(cases)[:, None]
        spreads = np.array([term.spread for term in self.terms])
        strange = self._strangeness(cases)
        kinds = np.column_stack([set_index, cases.gpu_index, cases.engine_index])
        kind = np.unique(kinds, axis=0, return_inverse=True)[1].reshape(-1)
        drawn_of = [draw_theta(coefficients, samples, rng) for coefficients in sets]
        joules = np.empty((samples, len(cases)))
        for number in range(int(kind.max(initial=-1)) + 1):
            mine = np.flatnonzero(kind == number)
            theta = drawn_of[set_index[mine[0]]]
            if strange[mine[0]]:
                theta = theta + strange[mine[0]] * spreads * rng.standard_normal(theta.shape)
            joules[:, mine] = energy(x[mine][None], np.maximum(theta, 0.0)[:, None])
        if of_factors.any():
            width = max(len(cases.precisions), 1)
            pair = cases.llm_index * width + cases.precision_index
            served = np.unique(pair, return_inverse=True)[1].reshape(-1)
            common = rng.standard_normal((samples, int(served.max()) + 1))[:, served]
            joules *= np.exp(np.sqrt(of_factors) * common)
        spread = np.array([s.spread_ratio for s in sets])[set_index]
        reach = float(np.mean([s.reach_doublings for s in sets]))
        place = knob_place(cases)
        labels = (cases.gpu_index, cases.precision_index, cases.llm_index)
        apart = sum(LABEL_DOUBLINGS * (label[:, None] != label[None]) for label in labels)
        correlation = residual_covariance(
            place, place, common=1.0 - OWN_RATIO, own=OWN_RATIO, reach=reach, apart=apart
        )
        root = np.linalg.cholesky(correlation + 1e-9 * np.eye(len(cases)))
        drawn: FloatArray = joules * np.exp(spread * (rng.standard_normal(joules.shape) @ root.T))
        limits = self._of_limits(cases)
        if limits.any():  # what is wrong about one clock or cap is wrong about all, the lower more
            drawn *= np.exp(rng.standard_normal((samples, 1)) * np.sqrt(limits))
        return drawn


def only_version(engine: str, known: Iterable[str]) -> str:
    """Give an engine named without a version the one version of it that is known, if it is one.

    Ids as in ``Engine.id``; what has a version, or several to choose from, stays as it is.
    """
    versions = {name for name in known if name.rpartition(" ")[0] == engine}
    return versions.pop() if engine and len(versions) == 1 else engine


def physics_flags(theta: FloatArray, terms: Sequence[Term], factor: float = 1.0) -> dict[str, str]:
    """Say, by term, where a coefficient is no more than hardware needs at least.

    Such a coefficient is no reading of the hardware: what it multiplies was counted too high, or
    its time is in another term. A ``factor`` below 1, of the LLM and format that are asked about,
    may bring one there too.
    """
    causes = {
        "prefill_compute": "prompts may be shorter than counted (assumed lengths, prefix caching)",
        "decode_compute": "it hides behind reading the weights",
        "decode_cache": "contexts may be shorter than counted",
    }
    other = "less may be read than is counted"
    less = min(factor, 1.0)
    counted_in = " (with the factors of this LLM)" if less < 0.995 else ""
    return {
        term.name: (
            f"the coefficient {term.name}{counted_in} is {value * less:.2g} of what the datasheet "
            f"suggests, and hardware needs {term.lower_bound:g} at least (measured operators): "
            f"{causes.get(term.name, other)}, or its time is in another term. Do not read its "
            "joules as what hardware takes."
        )
        for term, value in zip(terms, theta, strict=True)
        if term.lower_bound > 0 and value * less <= term.lower_bound * (1.0 + 1e-9)
    }


def known_engine(engine: Engine, known: Iterable[str]) -> bool:
    """Whether an engine is one of those known by id; without a version, any version of it is."""
    return any(
        name == engine.id or (not engine.version and name.rpartition(" ")[0] == engine.name)
        for name in known
    )


def _combinations(cases: Cases) -> tuple[list[tuple[str, ...]], NDArray[np.intp]]:
    """Ids of the LLM, GPU, precision and engine that occur together, and which each case has."""
    records = (cases.llms, cases.gpus, cases.precisions, cases.engines)
    sizes = tuple(max(len(of), 1) for of in records)
    combined = np.ravel_multi_index(
        (cases.llm_index, cases.gpu_index, cases.precision_index, cases.engine_index), sizes
    )
    places, index = np.unique(combined, return_inverse=True)
    ids = [
        tuple(of[i].id for of, i in zip(records, np.unravel_index(place, sizes), strict=True))
        for place in places
    ]
    return ids, index.reshape(-1)


def format_kinds(cases: Cases) -> NDArray[np.object_]:
    """Kind of each case's format; shape (n,).

    16 bits, weights alone in fewer, factors too, or these in blocks that share a scale.
    """

    def kind(precision: Precision) -> str:
        if precision.weight_bits >= 16:
            return WIDE
        if precision.compute_bits >= 16:
            return "weights"
        return "blocks" if precision.block_size else "products"

    return np.array([kind(p) for p in cases.precisions], dtype=object)[cases.precision_index]


def group_key(names: Sequence[str]) -> str:
    """Name a group of coefficients; an engine that is not known leaves no trace."""
    return " ".join(filter(None, names))


def knob_place(cases: Cases) -> FloatArray:
    """Where each configuration stands among others, in doublings of its knobs; shape (n, 6)."""
    knobs = (
        in_flight(cases),
        cases.tensor_parallel,
        cases.pipeline_parallel,
        cases.data_parallel,
        cases.cap_ratio,
        cases.clock_ratio,
    )
    return np.log2(np.column_stack(knobs))


def residual_covariance(
    a: FloatArray,
    b: FloatArray,
    *,
    common: float,
    own: float,
    reach: float,
    apart: FloatArray | int = 0,
) -> FloatArray:
    """How what the law leaves of some configurations goes with what it leaves of others.

    Every probability of being the best rests on it: that of a ranking, of a decision under load
    and of the next runs, which condition it on the rows that are measured.

    Parameters
    ----------
    a, b : ndarray, shapes (n, 6) and (m, 6)
        Where they stand, as :func:`knob_place` says.
    common, own : float
        Variance that all share, and that goes with the distance.
    reach : float
        Doublings of knobs over which it falls by e.
    apart : ndarray, shape (n, m), optional
        Doublings that they stand apart by besides.

    Returns
    -------
    ndarray, shape (n, m)
    """
    distance = np.abs(a[:, None] - b[None]).sum(axis=2) + apart
    return np.asarray(common + own * np.exp(-distance / reach))


def draw_theta(coefficients: Coefficients, samples: int, rng: np.random.Generator) -> FloatArray:
    """Draw coefficient sets from their covariance, shape (samples, 12); may be below 0."""
    values, vectors = np.linalg.eigh(coefficients.covariance)
    # The symmetric root: unlike the eigenvectors it is one and the same on every machine.
    root = (vectors * np.sqrt(np.maximum(values, 0.0))) @ vectors.T
    draws: FloatArray = rng.standard_normal((samples, len(root))) @ root.T
    return coefficients.theta + draws


def share_of_term(theta: FloatArray, covariance: FloatArray) -> FloatArray:
    """Share of each coefficient's deviation that it can be smaller by: none lies below 0."""
    deviation = np.sqrt(np.maximum(np.diag(covariance), 1e-300))
    share: FloatArray = np.minimum(theta / deviation, 1.0)
    return share


def conformal_quantiles(
    residuals: FloatArray, coverage_ratio: float, groups: int | None = None
) -> tuple[float, float]:
    """Both quantiles of sorted residuals that cover a new one with the probability asked.

    Split-conformal: of n residuals, the k-th from each end with k = (n + 1) (1 - coverage) / 2;
    where n is too small for that, the extremes, widened by a quarter for each missing rank.
    Residuals of g groups that err together count as g (hierarchical conformal prediction, Lee,
    Barber and Willett, arXiv 2306.06342): the same share of them as k is of g.
    """
    n = len(residuals)
    g = n if groups is None else min(groups, n)
    rank = (g + 1) * (1.0 - coverage_ratio) / 2.0
    place = (rank - 0.5) * n / g - 0.5
    if place >= 0.0:
        low, high = np.interp([place, n - 1 - place], np.arange(n), residuals)
        return float(low), float(high)
    wide = 1.25 + (1.0 - rank)
    return wide * min(float(residuals[0]), 0.0), wide * max(float(residuals[-1]), 0.0)
