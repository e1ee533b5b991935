// Expressions of charts as closures, each made once. The page's policy forbids to make code of
// text, and the interpreter that comes with the charts walks the tree anew for every mark.
const CONSTANTS = { NaN, E: Math.E, PI: Math.PI, MIN_VALUE: Number.MIN_VALUE, MAX_VALUE: Number.MAX_VALUE };
const BINARY = {
  "*": (a, b) => a * b, "+": (a, b) => a + b, "-": (a, b) => a - b, "/": (a, b) => a / b, "%": (a, b) => a % b,
  ">": (a, b) => a > b, "<": (a, b) => a < b, ">=": (a, b) => a >= b, "<=": (a, b) => a <= b,
  "==": (a, b) => a == b, "!=": (a, b) => a != b, "===": (a, b) => a === b, "!==": (a, b) => a !== b,
};
const UNARY = { "+": (a) => +a, "-": (a) => -a, "!": (a) => !a };
const MATHS = ["abs", "ceil", "cos", "exp", "floor", "log", "max", "min", "pow", "round", "sin", "sqrt", "tan"];
const OWN = {
  ...Object.fromEntries(MATHS.map((name) => [name, Math[name]])),
  isNaN: Number.isNaN, isFinite: Number.isFinite, parseFloat, parseInt, now: Date.now,
  clamp: (v, low, high) => Math.max(low, Math.min(high, v)), length: (v) => v.length,
  join: (v, ...rest) => v.join(...rest), indexof: (v, ...rest) => v.indexOf(...rest), slice: (v, ...rest) => v.slice(...rest),
  upper: (v) => String(v).toUpperCase(), lower: (v) => String(v).toLowerCase(), trim: (v) => String(v).trim(),
  substring: (v, ...rest) => String(v).substring(...rest), split: (v, ...rest) => String(v).split(...rest),
  replace: (v, ...rest) => String(v).replace(...rest),
};
const OF_EVENT = ["view", "item", "group", "xy", "x", "y"];

// Closures take parameters, datum, event and item; no function is ever a value.
const plain = (value) => (typeof value === "function" ? undefined : value);
const KINDS = {
  Literal: ({ value }) => () => value,
  Identifier({ name }) {
    if (name === "datum") return (_, datum) => datum;
    if (name === "event") return (_, datum, event) => event;
    if (name === "item") return (_, datum, event, item) => item;
    if (Object.hasOwn(CONSTANTS, name)) return () => CONSTANTS[name];
    const named = `$${name}`;
    return (params) => params[named];
  },
  MemberExpression({ object, property, computed }, of) {
    const from = of(object);
    if (!computed || property.type === "Literal") {
      const field = computed ? property.value : property.name;
      if (object.name === "datum") return (_, datum) => plain(datum[field]);
      return (p, d, e, i) => plain(from(p, d, e, i)[field]);
    }
    const field = of(property);
    return (p, d, e, i) => plain(from(p, d, e, i)[field(p, d, e, i)]);
  },
  CallExpression({ callee, arguments: given }, of, functions) {
    const name = callee.name.replace(/^_/, "");
    const args = given.map(of);
    const [a, b, c] = args;
    if (name === "if") return (p, d, e, i) => (a(p, d, e, i) ? b : c)(p, d, e, i);
    if (OF_EVENT.includes(name)) return (p, d, e, i) => e.vega[name](...args.map((arg) => arg(p, d, e, i)));
    const called = functions[name] ?? (Object.hasOwn(OWN, name) ? OWN[name] : null);
    if (typeof called !== "function") throw new Error(`charts know no function ${name}`);
    if (args.length === 1) return (p, d, e, i) => called.call(functions, a(p, d, e, i));
    if (args.length === 2) return (p, d, e, i) => called.call(functions, a(p, d, e, i), b(p, d, e, i));
    return (p, d, e, i) => called.apply(functions, args.map((arg) => arg(p, d, e, i)));
  },
  ArrayExpression({ elements }, of) {
    const parts = elements.map(of);
    return (p, d, e, i) => parts.map((part) => part(p, d, e, i));
  },
  BinaryExpression({ operator, left, right }, of) {
    const [act, a, b] = [BINARY[operator], of(left), of(right)];
    if (!act) throw new Error(`charts know no operator ${operator}`);
    return (p, d, e, i) => act(a(p, d, e, i), b(p, d, e, i));
  },
  UnaryExpression({ operator, argument }, of) {
    const [act, a] = [UNARY[operator], of(argument)];
    if (!act) throw new Error(`charts know no operator ${operator}`);
    return (p, d, e, i) => act(a(p, d, e, i));
  },
  ConditionalExpression({ test, consequent, alternate }, of) {
    const [asked, yes, no] = [of(test), of(consequent), of(alternate)];
    return (p, d, e, i) => (asked(p, d, e, i) ? yes : no)(p, d, e, i);
  },
  LogicalExpression({ operator, left, right }, of) {
    const [a, b] = [of(left), of(right)];
    return operator === "&&" ? (p, d, e, i) => a(p, d, e, i) && b(p, d, e, i) : (p, d, e, i) => a(p, d, e, i) || b(p, d, e, i);
  },
  ObjectExpression({ properties }, of) {
    const parts = properties.map(({ key, value }) => [key.type === "Literal" ? key.value : key.name, of(value)]);
    return (p, d, e, i) => Object.fromEntries(parts.map(([name, value]) => [name, value(p, d, e, i)]));
  },
};
function closure({ functions }, { ast }) {
  const of = (node) => {
    if (!KINDS[node.type]) throw new Error(`charts know no ${node.type}`);
    return KINDS[node.type](node, of, functions);
  };
  return of(ast);
}

// Marks may be placed by either end, or by their middle.
function along(item, channels, from, to, middle, size, ordered) {
  if (channels[to]) {
    if (!channels[from]) item[from] = item[to] - (item[size] || 0);
    else {
      if (ordered && item[from] > item[to]) [item[from], item[to]] = [item[to], item[from]];
      item[size] = item[to] - item[from];
    }
  }
  if (channels[middle]) item[from] = item[middle] - (item[size] || 0) / 2;
}

export const expressions = {
  operator(context, expression) { return closure(context, expression); },
  parameter(context, expression) {
    const made = closure(context, expression);
    return (datum, params) => made(params, datum);
  },
  event(context, expression) {
    const made = closure(context, expression);
    return (event) => made(undefined, undefined, event);
  },
  handler(context, expression) {
    const made = closure(context, expression);
    return (params, event) => made(params, event.item?.datum, event);
  },
  encode(context, { marktype, channels }) {
    const made = Object.entries(channels).map(([name, channel]) => [name, closure(context, channel)]);
    const ordered = ["group", "image", "rect"].includes(marktype);
    return (item, params) => {
      let changed = 0;
      for (const [name, value] of made) {
        const now = value(params, item.datum, undefined, item);
        if (item[name] !== now) { item[name] = now; changed = 1; }
      }
      if (marktype !== "rule") {
        along(item, channels, "x", "x2", "xc", "width", ordered);
        along(item, channels, "y", "y2", "yc", "height", ordered);
      }
      return changed;
    };
  },
};
