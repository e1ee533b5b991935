"""One GPU of a simulated node: kernels by roofline, power by activity, a clock under a limit.

Shares no code with the energy law and none of its shape. The time of a kernel comes from whole
tiles and whole waves of them, from bandwidth that ramps up, and from launch gaps; an all-reduce
goes at one shot or round a ring; experts are drawn token by token. Power is idle draw, leakage
that follows the temperature, and activity of compute units, memory and links that saturates;
where it would exceed the board's limit, the clock falls.

Constants are round numbers of the order that datasheets, kernel benchmarks and serving
leaderboards show. ``docs/simulation.md`` tells the checks made.
"""

from __future__ import annotations

import hashlib
import math
from dataclasses import dataclass, fields, replace

import numpy as np

from energylens.cases import FloatArray
from energylens.records import Case, Experts, Gpu, Llm

# -- kernels
REPLAYED_GAP_S = 0.9e-6  # between two kernels of a captured graph
EAGER_LAUNCH_S = 4.5e-6  # least time of a kernel launched by the host
COMPUTE_SHARE = 0.78  # of the peak FLOP/s that a perfectly tiled product reaches
WIDENING_SHARE = 0.78  # of that where narrow weights are widened first
MEMORY_SHARE = 0.91  # of the peak bandwidth that a long contiguous read reaches,
PAGED_SHARE = 0.6  # that the pages of a cache reach,
GROUPED_SHARE = 0.66  # and that scattered experts reach
RAMP_BYTES = 4e6  # that could have been read while a kernel starts and drains
CORNER = 4.0  # how sharp the roofline's corner is
TILE_COLUMNS = 128
SCAN_CHUNK = 256.0  # tokens of a state-space scan that are multiplied at once
PROCESSORS = {  # streaming multiprocessors or their like; other types get a typical number
    **{"V100": 80, "A40": 84, "A100": 108, "H100": 132, "H200": 132, "GH200": 132, "B200": 148},
    **{"L4": 58, "L40S": 142, "MI250": 208, "MI300X": 304},
}

# -- links
LINK_SHARE = 0.75  # of the peak that collectives reach
PCIE_BYTES_PER_S = 32e9  # one direction, where the catalog knows no link
NETWORK_BYTES_PER_S = 45e9  # one direction and GPU, between nodes
NODE_GPUS = 8
ONE_SHOT_S, RING_S, RING_HOP_S, NETWORK_S = 5e-6, 9e-6, 1.4e-6, 18e-6

# -- power: shares of what lies between idle and the limit, at full activity
ACTIVE_SHARE, COMPUTE_POWER, MEMORY_POWER, LINK_POWER = 0.17, 0.94, 0.49, 0.07
COMPUTE_KNEE, MEMORY_KNEE = 0.8, 1.8  # small: saturates early
PADDING_SHARE = 0.5  # of an operation's energy that multiplying padding takes
WAITING_SHARE = 0.5  # of the active draw while a GPU spins for another one or for the host
IDLE_TDP_SHARE = 0.12  # idle draw where the catalog has no reading
LEAKAGE_SHARE, LEAKAGE_KELVIN = 0.4, 60.0  # of the idle draw; grows by e over so many kelvin
INLET_C, HEATING_KELVIN = 27.0, 48.0  # the die at rest, and how much the limit warms it
LOWEST_CLOCK_RATIO = 0.35


def steady_hash(*parts: object) -> int:
    """Make a 32-bit seed that is the same on every machine and in every run."""
    return int.from_bytes(hashlib.sha256(repr(parts).encode()).digest()[:4], "big")


@dataclass(frozen=True, kw_only=True)
class Board:
    """A GPU type in a room of some temperature."""

    gpu: Gpu
    inlet_c: float = INLET_C

    @property
    def processors(self) -> int:
        """Units that tiles are spread over."""
        return PROCESSORS.get(self.gpu.id.split("-")[0], 120)

    @property
    def link_bytes_per_s(self) -> float:
        """Peak of one direction between two GPUs of a node."""
        link = self.gpu.link_bandwidth_bytes_per_s
        return link / 2 if link else PCIE_BYTES_PER_S

    @property
    def idle_w(self) -> float:
        """Draw of a GPU that holds an LLM and does nothing."""
        return self.gpu.idle_power_w or IDLE_TDP_SHARE * self.gpu.tdp_w

    @property
    def waiting_w(self) -> float:
        """Draw of a GPU that waits for another one."""
        spinning = WAITING_SHARE * ACTIVE_SHARE * (self.gpu.tdp_w - self.idle_w)
        return float(self.total_w(np.array(spinning)))

    def total_w(self, dynamic_w: FloatArray) -> FloatArray:
        """Add idle draw, and the leakage of a die that both have warmed."""
        celsius = self.inlet_c + HEATING_KELVIN * (self.idle_w + dynamic_w) / self.gpu.tdp_w
        leakage = LEAKAGE_SHARE * self.idle_w * np.expm1((celsius - INLET_C) / LEAKAGE_KELVIN)
        return np.asarray(self.idle_w + leakage + dynamic_w)

    def dynamic_w(
        self, clock: FloatArray, compute: FloatArray, memory: FloatArray, link: FloatArray
    ) -> FloatArray:
        """Power above idle at a share of the top clock and utilisations of the peak rates.

        Activity saturates as ``u (1 + k) / (u + k)``: the first half of the work costs more
        than half of the power. The energy of an operation goes with the square of a voltage
        that falls with the clock.
        """
        volt = (0.55 + 0.45 * clock) ** 2
        computing = COMPUTE_POWER * compute * (1 + COMPUTE_KNEE) / (compute + COMPUTE_KNEE)
        moving = MEMORY_POWER * memory * (1 + MEMORY_KNEE) / (memory + MEMORY_KNEE)
        shares = (ACTIVE_SHARE * clock + computing) * volt + moving + LINK_POWER * link
        return np.asarray((self.gpu.tdp_w - self.idle_w) * shares)


@dataclass(frozen=True, kw_only=True, eq=False)
class Passes:
    """n forward passes of one microbatch; arrays of shape (n,), or one number for all."""

    repeats: FloatArray  # passes alike that each stands for
    tokens: FloatArray  # through the linear layers
    answered: FloatArray  # sequences that get a token
    eager: FloatArray | float = 0.0  # 1: launched kernel by kernel, 0: replayed as a graph
    decoding: FloatArray | float = 0.0  # sequences with one token in the pass
    cached: FloatArray | float = 0.0  # tokens that full-attention layers read from the cache
    cached_window: FloatArray | float = 0.0  # the same in sliding-window layers
    pairs: FloatArray | float = 0.0  # query-key pairs of prompt tokens, full attention
    pairs_window: FloatArray | float = 0.0
    pictures: FloatArray | float = 0.0  # images and frames that the vision tower encodes
    patches: FloatArray | float = 0.0  # of all of them

    def divided(self, parts: int) -> Passes:
        """Return one of ``parts`` equal microbatches."""
        names = {f.name for f in fields(self)} - {"repeats", "eager"}
        return replace(self, **{name: getattr(self, name) / parts for name in names})


@dataclass(frozen=True, kw_only=True, eq=False)
class Kernel:
    """One kind of kernel in one layer, over n passes: seconds at the top clock."""

    layers: float = 0.0  # layers of the LLM that have it, over all stages
    stage: int | None = None  # the one stage that has it, once; None: the layers' stages
    launches: float = 1.0
    compute_s: FloatArray | float = 0.0
    memory_s: FloatArray | float = 0.0
    link_s: FloatArray | float = 0.0
    ideal_compute_s: FloatArray | float = 0.0  # at the peak rates: what activity counts
    ideal_memory_s: FloatArray | float = 0.0
    ideal_link_s: FloatArray | float = 0.0


@dataclass(frozen=True, kw_only=True, eq=False)
class Shard:
    """What each GPU of a replica holds: its part of every layer of its stage.

    ``replicas`` are those that serve requests; ``stage_layers`` has the layers of each stage.
    """

    case: Case
    board: Board
    replicas: int
    stage_layers: FloatArray
    slower: float = 1.0  # times against the nominal ones
    clock_ratio: float = 1.0  # that the clock is locked to, of the top one
    power_cap_w: float | None = None  # of each GPU, where lower than what it ships with

    def run(self, p: Passes) -> tuple[FloatArray, FloatArray]:
        """Seconds and joules of one GPU of each stage; both of shape (stages, n).

        The clock falls until the mean power of a pass is within the board's limit.
        """
        kernels, n = self._kernels(p), len(p.tokens)

        def column(name: str) -> FloatArray:
            rows = [np.broadcast_to(getattr(k, name), (n,)) for k in kernels]
            return np.stack(rows)[:, None, :]

        compute, memory, link = column("compute_s"), column("memory_s"), column("link_s")
        ideal = [column(f"ideal_{name}_s") for name in ("compute", "memory", "link")]
        gaps = column("launches") * REPLAYED_GAP_S
        floor = column("launches") * EAGER_LAUNCH_S * p.eager
        shares = self.stage_layers / self.stage_layers.sum()
        places = np.arange(len(shares))
        often = np.stack(
            [k.layers * shares if k.stage is None else 1.0 * (places == k.stage) for k in kernels]
        )[:, :, None]

        def at(clock: FloatArray) -> tuple[FloatArray, FloatArray]:
            work = ((compute / clock) ** CORNER + memory**CORNER) ** (1 / CORNER)
            seconds = np.maximum(work + link + gaps, floor)
            watts = self.board.dynamic_w(clock, *(part / seconds for part in ideal))
            busy_s = (often * seconds).sum(axis=0)
            return busy_s, self.board.total_w((often * seconds * watts).sum(axis=0) / busy_s)

        top = self.clock_ratio
        seconds, watts = at(np.full((1, 1, 1), top))
        limit_w = min(self.power_cap_w or math.inf, self.board.gpu.tdp_w)
        hot = watts > limit_w
        if hot.any():
            low, high = np.full(hot.shape, LOWEST_CLOCK_RATIO), np.full(hot.shape, top)
            for _ in range(12):
                middle = (low + high) / 2
                over = at(middle[None])[1] > limit_w
                low, high = np.where(over, low, middle), np.where(over, middle, high)
            slow_s, slow_w = at(low[None])
            seconds, watts = np.where(hot, slow_s, seconds), np.where(hot, slow_w, watts)
        seconds = seconds * self.slower
        return seconds, seconds * watts

    # ------------------------------------------------------------------------ kinds of kernel

    def _product(
        self, rows: FloatArray, columns: float, depth: float, *, layers: float = 0.0, **place: int
    ) -> Kernel:
        """Multiply ``rows x depth`` with weights of ``depth x columns``."""
        tile = np.select([rows <= 16, rows <= 32, rows <= 64], [16.0, 32.0, 64.0], 128.0)
        stage = place.get("stage")
        weights = columns * depth * (2.0 if stage is not None else self._weight_bytes(False))
        return self._tiled(
            rows, np.ceil(rows / tile), tile, columns, depth, weights, layers=layers, stage=stage
        )

    def _tiled(
        self,
        rows: FloatArray,
        row_tiles: FloatArray,
        tile: FloatArray,
        columns: float,
        depth: float,
        weights: FloatArray | float,
        *,
        layers: float,
        stage: int | None = None,
        bandwidth_share: float = MEMORY_SHARE,
    ) -> Kernel:
        """Whole tiles, whole waves of them over the processors, and a pipeline to fill.

        What one stage alone has (the vocabulary) is in 16 bits.
        """
        gpu, precision = self.board.gpu, self.case.precision
        bits = 16 if stage is not None else precision.compute_bits
        widened = stage is None and precision.weight_only
        if bits == 8 and precision.id.startswith("fp8") and gpu.fp8_flop_per_s is None:
            bits, widened = 16, True  # as engines do where no unit multiplies fp8
        peak = gpu.flop_per_s(bits) * (1.0 if bits <= 16 else 0.5)
        across = math.ceil(columns / TILE_COLUMNS)
        tiles = row_tiles * across
        split = np.clip(np.floor(self.board.processors / tiles), 1, max(1, depth // 1024))
        waves = np.ceil(tiles * split / self.board.processors)
        occupied = tiles * split / (waves * self.board.processors)
        # Small tiles reload operands more often per product; short depths do not fill the pipe.
        part = depth / split
        rate = peak * COMPUTE_SHARE * occupied * tile / (tile + 40.0) * part / (part + 160.0)
        padded = 2.0 * row_tiles * tile * across * TILE_COLUMNS * depth
        useful = 2.0 * rows * columns * depth
        moved = weights + 2.0 * rows * (columns + depth)
        reached = gpu.memory_bandwidth_bytes_per_s * bandwidth_share
        return Kernel(
            layers=layers,
            stage=stage,
            compute_s=padded / (rate * (WIDENING_SHARE if widened else 1.0)),
            memory_s=(moved + RAMP_BYTES) / (reached * np.minimum(1.0, 2 * occupied)),
            ideal_compute_s=(useful + PADDING_SHARE * (padded - useful)) / peak,
            ideal_memory_s=moved / gpu.memory_bandwidth_bytes_per_s,
        )

    def _plain(
        self,
        flop: FloatArray | float,
        moved: FloatArray | float,
        compute_share: float,
        bandwidth_share: float,
        *,
        layers: float = 0.0,
        stage: int | None = None,
        launches: float = 1.0,
    ) -> Kernel:
        """Anything but a product with weights: shares of the peak FLOP/s and bandwidth."""
        peak = self.board.gpu.bf16_flop_per_s
        bandwidth = self.board.gpu.memory_bandwidth_bytes_per_s
        # What moves nothing does not run.
        ramp = RAMP_BYTES * np.minimum(1.0, moved)
        return Kernel(
            layers=layers,
            stage=stage,
            launches=launches,
            compute_s=flop / (peak * compute_share),
            memory_s=(moved + ramp) / (bandwidth * bandwidth_share),
            ideal_compute_s=flop / peak,
            ideal_memory_s=moved / bandwidth,
        )

    def _all_reduce(self, tokens: FloatArray, layers: float) -> Kernel:
        """Sum hidden states over the tensor-parallel group, at one shot or round a ring."""
        gpus = self.case.configuration.tensor_parallel
        size = tokens * self.case.llm.hidden_size * 2.0
        peak, far_s = self.board.link_bytes_per_s, 0.0
        if gpus > NODE_GPUS:
            peak, far_s = min(peak, NETWORK_BYTES_PER_S), NETWORK_S
        once, round_ring = (gpus - 1) * size, 2.0 * (gpus - 1) / gpus * size
        once_s = ONE_SHOT_S + far_s + once / (peak * LINK_SHARE)
        hops_s = 2 * (gpus - 1) * (RING_HOP_S + far_s / gpus)
        ring_s = RING_S + hops_s + round_ring / (peak * LINK_SHARE)
        return Kernel(
            layers=layers,
            link_s=np.minimum(once_s, ring_s),
            ideal_link_s=np.where(once_s < ring_s, once, round_ring) / peak,
            ideal_memory_s=2.0 * size / self.board.gpu.memory_bandwidth_bytes_per_s,
        )

    # ----------------------------------------------------------------------- parts of the LLM

    def _kernels(self, p: Passes) -> list[Kernel]:
        """List everything that one GPU of each stage launches."""
        llm, tp = self.case.llm, self.case.configuration.tensor_parallel
        last, vocabulary = len(self.stage_layers) - 1, llm.vocabulary_size
        # Engines compute a token for every sequence in a pass, wanted yet or not.
        answered = np.maximum(p.answered, 1.0)
        kernels = [
            # Norms, residuals, rotary embedding, activation functions.
            self._plain(
                0.0, 14.0 * p.tokens * llm.hidden_size, 1.0, 0.75, layers=llm.layers, launches=3
            ),
            self._product(answered, vocabulary / tp, llm.hidden_size, stage=last),
            # Softmax, top-p and the choice of a token.
            self._plain(0.0, 16.0 * answered * vocabulary, 1.0, 0.5, stage=last, launches=12),
        ]
        reductions = 0.0
        if llm.attention:
            kernels += self._attention(p)
            reductions += llm.attention.layers
        if llm.state_space:
            kernels += self._state_space(p)
            reductions += llm.state_space.layers
        if llm.feed_forward:
            f = llm.feed_forward
            kernels += self._feed_forward(p.tokens, f.size, f.matrices, f.layers)
            reductions += f.layers
        if llm.experts:
            kernels += self._experts(p.tokens, llm.experts)
            reductions += llm.experts.layers
        if tp > 1:
            kernels.append(self._all_reduce(p.tokens, reductions))
        if llm.vision and np.any(p.patches):
            kernels.append(self._vision(p))
        return kernels

    def _weight_bytes(self, routed: bool) -> float:
        """Bytes of one element of a weight matrix: of the routed experts, or of other layers."""
        narrow = self.case.precision.weight_bits / 8
        linear = self.case.precision.scope == "linear"
        return narrow if routed or linear else max(narrow, 2.0)

    def _feed_forward(
        self, tokens: FloatArray, size: float, matrices: int, layers: float
    ) -> list[Kernel]:
        hidden, inner = self.case.llm.hidden_size, size / self.case.configuration.tensor_parallel
        return [
            self._product(tokens, (matrices - 1) * inner, hidden, layers=layers),
            self._product(tokens, hidden, inner, layers=layers),
        ]

    def _attention(self, p: Passes) -> list[Kernel]:
        llm, tp = self.case.llm, self.case.configuration.tensor_parallel
        a = llm.attention
        assert a is not None
        value = a.value_head_size or a.head_size
        # Fewer key-value heads than GPUs are copied; a latent is held by every GPU.
        heads, kv_heads = a.heads / tp, max(a.kv_heads / tp, 1.0)
        if a.kv_rank is None:
            shapes = [(heads * a.head_size + kv_heads * (a.head_size + value), llm.hidden_size)]
            cached_elements = kv_heads * (a.head_size + value)
            read_flop = prompt_flop = 2.0 * heads * (a.head_size + value)
            rows_of_tile = a.heads / a.kv_heads
        else:
            # Down to the latent, up to each GPU's heads. Decoding multiplies with the latent
            # itself, the up-projections being absorbed (DeepSeek-V2, arXiv 2405.04434).
            latent, query = a.kv_rank + a.rope_head_size, a.head_size + a.rope_head_size
            shapes = [
                (latent + (a.query_rank or 0), llm.hidden_size),
                (heads * query, a.query_rank or llm.hidden_size),
                (heads * (a.head_size + value), a.kv_rank),
            ]
            cached_elements = latent
            read_flop = 2.0 * heads * (latent + a.kv_rank)
            prompt_flop = 2.0 * heads * (query + value)
            rows_of_tile = heads
        kernels = [
            self._product(p.tokens, columns, depth, layers=a.layers)
            for columns, depth in [*shapes, (llm.hidden_size, heads * value)]
        ]
        for layers, cached, pairs in (
            (a.layers - a.window_layers, p.cached, p.pairs),
            (a.window_layers, p.cached_window, p.pairs_window),
        ):
            if layers and np.any(cached):
                # The queries that share a key fill a tile of sixteen rows, or pad it; few and
                # short sequences leave processors without work.
                filled = min(1.0, rows_of_tile / 16.0)
                busy = 0.25 + np.asarray(cached) * kv_heads / (self.board.processors * 256.0)
                read = self._plain(
                    read_flop * cached,
                    cached_elements * self.case.precision.kv_bits / 8 * cached,
                    0.5 * filled,
                    PAGED_SHARE,
                    layers=layers,
                    launches=2,
                )
                padding = 1.0 + PADDING_SHARE * (1.0 / filled - 1.0)
                kernels.append(
                    replace(
                        read,
                        memory_s=read.memory_s / np.minimum(1.0, busy),
                        ideal_compute_s=read.ideal_compute_s * padding,
                    )
                )
            if layers and np.any(pairs):
                moved = 4.0 * (p.tokens - p.decoding) * (heads + kv_heads) * a.head_size
                kernels.append(
                    self._plain(prompt_flop * pairs, moved, 0.52, 0.8, layers=layers, launches=2)
                )
        return kernels

    def _state_space(self, p: Passes) -> list[Kernel]:
        llm, tp = self.case.llm, self.case.configuration.tensor_parallel
        s = llm.state_space
        assert s is not None
        inner = s.inner_size / tp
        state = inner * s.state_size
        projected = 2 * inner + 2 * s.groups * s.state_size + s.heads / tp
        kernels = [
            self._product(p.tokens, projected, llm.hidden_size, layers=s.layers),
            self._product(p.tokens, llm.hidden_size, inner, layers=s.layers),
            # The short convolution.
            self._plain(0.0, 8.0 * p.tokens * inner, 1.0, 0.7, layers=s.layers),
        ]
        if np.any(p.decoding):  # the state of each sequence, in 32 bits, read and written
            elements = state * p.decoding
            kernels.append(self._plain(6.0 * elements, 8.0 * elements, 0.06, 0.72, layers=s.layers))
        prompt = p.tokens - p.decoding
        if np.any(prompt):  # products within chunks of tokens, a recurrence between them
            flop = prompt * inner * (4.0 * s.state_size + 2.0 * SCAN_CHUNK)
            moved = prompt * (12.0 * inner + 8.0 * state / SCAN_CHUNK)
            share = 0.22 if s.heads else 0.05  # the first Mamba scans without products
            kernels.append(self._plain(flop, moved, share, 0.6, layers=s.layers, launches=5))
        return kernels

    def _experts(self, tokens: FloatArray, e: Experts) -> list[Kernel]:
        """Route, send to the experts' GPUs where they are spread, multiply, send back."""
        llm, c = self.case.llm, self.case.configuration
        hidden, spread = llm.hidden_size, c.expert_parallel
        # Replicas whose tokens meet at the same experts, and GPUs that share each expert.
        meeting = min(max(1, spread // c.tensor_parallel), self.replicas) if spread > 1 else 1
        inner = e.size / max(1, c.tensor_parallel // spread)
        touched, row_tiles, tile, rows = _route(llm, e, tokens * meeting, spread)
        kernels = [
            self._plain(  # the router
                2.0 * tokens * e.experts * hidden,
                2.0 * (tokens + e.experts) * hidden,
                0.3,
                0.7,
                layers=e.layers,
            ),
            # Tokens sorted by expert, and their results weighed.
            self._plain(0.0, 6.0 * rows * hidden, 1.0, 0.5, layers=e.layers, launches=5),
        ]
        for columns, depth in (((e.matrices - 1) * inner, hidden), (hidden, inner)):
            weights = touched * columns * depth * self._weight_bytes(True)
            kernels.append(
                self._tiled(
                    rows,
                    row_tiles,
                    tile,
                    columns,
                    depth,
                    weights,
                    layers=e.layers,
                    bandwidth_share=GROUPED_SHARE,
                )
            )
        if e.shared_size:
            kernels += self._feed_forward(tokens, e.shared_size, e.matrices, e.layers)
        if spread > 1 and c.data_parallel > 1:
            peak, latency_s = self.board.link_bytes_per_s, 2 * RING_S
            if spread > NODE_GPUS:
                peak, latency_s = min(peak, NETWORK_BYTES_PER_S), 2 * NETWORK_S
            sent = 4.0 * tokens * e.active_experts * hidden * (1 - 1 / spread) / c.tensor_parallel
            kernels.append(
                Kernel(
                    layers=e.layers,
                    launches=2,
                    link_s=latency_s + sent / (peak * LINK_SHARE),
                    ideal_link_s=sent / peak,
                )
            )
        return kernels

    def _vision(self, p: Passes) -> Kernel:
        """Run the tower, on the first stage; patches of a picture attend to each other."""
        v, tp = self.case.llm.vision, self.case.configuration.tensor_parallel
        assert v is not None
        each = p.patches / np.maximum(p.pictures, 1e-9)
        flop = p.patches * (2.0 * v.parameters + 4.0 * each * v.hidden_size * v.layers)
        moved = 2.0 * v.parameters * np.minimum(p.patches, 1.0)
        moved = moved + 28.0 * p.patches * v.hidden_size * v.layers
        return self._plain(flop / tp, moved / tp, 0.42, 0.7, stage=0, launches=10 * v.layers)


def _route(
    llm: Llm, e: Experts, tokens: FloatArray, spread: int
) -> tuple[FloatArray, FloatArray, FloatArray, FloatArray]:
    """Draw which experts tokens go to; popularity is skewed, and each layer has its own.

    Returns
    -------
    touched, row_tiles, tile, rows : ndarray of float, shape (n,)
        On the GPU with most to do and on average over layers: experts with work, tiles over
        their rows, rows of a tile, and rows.
    """
    layers = 10
    # RandomState: its streams are frozen, which those of newer generators are not, and the
    # packaged data set must come out the same under any numpy.
    popularity = np.exp(
        0.7 * np.random.RandomState(steady_hash("experts", llm.id)).randn(layers, e.experts)
    )
    popularity /= popularity.sum(axis=1, keepdims=True)
    # Neighbouring numbers of tokens are drawn once.
    near = np.where(tokens > 64, np.exp2(np.round(np.log2(tokens) * 12) / 12), tokens)
    sizes, places = np.unique(np.maximum(np.round(near), 1.0), return_inverse=True)
    places = places.reshape(-1)
    table = np.empty((4, len(sizes)))
    for i, size in enumerate(sizes):
        chance = np.random.RandomState(steady_hash("routing", llm.id, float(size)))
        drawn = [chance.multinomial(int(size) * e.active_experts, p) for p in popularity]
        # A token visits an expert once.
        gpus = np.minimum(np.array(drawn, dtype=np.float64), size).reshape(layers, spread, -1)
        busiest = gpus[np.arange(layers), gpus.sum(axis=2).argmax(axis=1)]
        mean = size * e.active_experts / e.experts
        tile = 16.0 if mean <= 12 else 32.0 if mean <= 24 else 64.0 if mean <= 64 else 128.0
        per_layer = ((busiest > 0).sum(axis=1), np.ceil(busiest / tile).sum(axis=1))
        table[:, i] = (*(part.mean() for part in per_layer), tile, busiest.sum(axis=1).mean())
    touched, row_tiles, tiles, rows = table[:, places]
    return touched, row_tiles, tiles, rows * tokens / sizes[places]
