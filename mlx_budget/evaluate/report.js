"use strict";
const PAGE = 50;
const data = JSON.parse(document.getElementById("data").textContent);
const $ = (id) => document.getElementById(id);
const unpacked = new Map();
let hidden = new Set(), found = [], shown = 0, latest = 0;

function make(name, properties, ...children) {
  const element = Object.assign(document.createElement(name), properties);
  element.append(...children.filter((child) => child !== null));
  return element;
}

// The replies of a question lie compressed in the page, and are read when it is opened.
async function replies(place) {
  if (!unpacked.has(place)) {
    const bytes = Uint8Array.from(atob(data.questions[place].packed), (c) => c.charCodeAt(0));
    const stream = new Blob([bytes]).stream().pipeThrough(new DecompressionStream("gzip"));
    unpacked.set(place, JSON.parse(await new Response(stream).text()));
  }
  return unpacked.get(place);
}

function marked(text, needle) {
  const pieces = [];
  const lower = text.toLowerCase();
  let at = 0;
  while (needle && lower.length === text.length) {
    const next = lower.indexOf(needle, at);
    if (next < 0 || pieces.length > 400) break;
    pieces.push(text.slice(at, next), make("mark", { textContent: text.slice(next, next + needle.length) }));
    at = next + needle.length;
  }
  return [...pieces, text.slice(at)];
}

function card(reply, needle) {
  const arm = data.arms[reply.arm];
  const verdict = reply.correct ? "right" : reply.problem ? "not graded" : "wrong";
  const badge = make("span", { className: `badge ${reply.correct ? "yes" : "no"}`, textContent: verdict });
  const name = reply.sample ? `${arm.name} #${reply.sample + 1}` : arm.name;
  const lines = [reply.counts];
  if (reply.closed) lines.push(`closed by ${reply.closed}`);
  const taken = reply.extracted === null ? reply.problem : `taken for the answer: ${reply.extracted}`;
  const thought = make("details", {}, make("summary", { textContent: "thinking" }));
  thought.open = Boolean(needle) && reply.thinking.toLowerCase().includes(needle);
  thought.append(make("pre", { className: "thought" }, ...marked(reply.thinking, needle)));
  return make("article", { className: "reply" },
    make("h3", {}, make("span", { textContent: name }), badge),
    make("div", { className: "counts", textContent: lines.join(" · ") }),
    reply.thinking ? thought : null,
    make("pre", {}, ...marked(reply.answer || "(no answer)", needle)),
    make("div", { className: "counts", textContent: [taken, reply.rule && `rule: ${reply.rule}`].filter(Boolean).join(" · ") }));
}

async function unfold(details, place) {
  const body = details.querySelector(".replies");
  const all = await replies(place);
  const needle = $("deep").checked ? $("search").value.trim().toLowerCase() : "";
  const cards = all.replies.filter((reply) => !hidden.has(reply.arm)).map((reply) => card(reply, needle));
  body.replaceChildren(...(cards.length ? cards : [make("p", { textContent: "All its arms are hidden." })]));
  details.querySelector(".asked").textContent = all.question;
}

function row(place) {
  const question = data.questions[place];
  const marks = data.arms.map((arm, i) => {
    if (hidden.has(i)) return null;
    const [right, n] = question.marks[i] || [0, 0];
    const kind = !n ? "none" : right === n ? "yes" : right ? "none" : "no";
    const sign = !n ? "·" : n > 1 ? `${right}/${n}` : right ? "✓" : "✗";
    const title = `${arm.name}: ${!n ? "no reply" : `${right} of ${n} right`}`;
    return make("span", { className: `mark ${kind}`, textContent: sign, title });
  });
  const details = make("details", { className: "question" },
    make("summary", {},
      make("span", { className: "soft", textContent: question.id }),
      make("span", { className: "asked", textContent: question.text }),
      make("span", { className: "soft", textContent: `= ${question.reference}` }),
      make("span", { className: "marks" }, ...marks)),
    make("div", { className: "replies" }));
  details.addEventListener("toggle", () => {
    const body = details.querySelector(".replies");
    if (details.open) unfold(details, place);
    else body.replaceChildren();
  });
  details.dataset.place = place;
  return details;
}

const is = (question, arm, right) => {
  const mark = question.marks[arm];
  return arm === "" || (mark && mark[1] > 0 && (right ? mark[0] === mark[1] : mark[0] < mark[1]));
};

function passes(question) {
  const seen = question.marks.filter((mark, i) => mark && mark[1] && !hidden.has(i));
  const right = seen.filter(([hits, n]) => hits === n).length;
  const kinds = {
    all: true,
    mixed: right > 0 && right < seen.length || seen.some(([hits, n]) => hits && hits < n),
    wrong: right < seen.length,
    right: right === seen.length,
    none: seen.every(([hits]) => hits === 0),
    problem: question.problems > 0,
  };
  return kinds[$("which").value] && is(question, $("right").value, true) && is(question, $("wrong").value, false);
}

async function filter() {
  const turn = ++latest;
  const needle = $("search").value.trim().toLowerCase();
  const matches = [];
  for (let place = 0; place < data.questions.length; place++) {
    const question = data.questions[place];
    if (!passes(question)) continue;
    let text = `${question.id}\n${question.text}\n${question.reference}\n${question.answers}`;
    if (needle && $("deep").checked && !text.toLowerCase().includes(needle)) {
      if (place % 20 === 0) $("found").textContent = `Reading replies, ${place} of ${data.questions.length} …`;
      const all = await replies(place);
      if (turn !== latest) return;
      text = all.question + all.replies.map((reply) => `\n${reply.thinking}\n${reply.answer}`).join("");
    }
    if (!needle || text.toLowerCase().includes(needle)) matches.push(place);
  }
  if (turn !== latest) return;
  found = matches;
  shown = 0;
  $("questions").replaceChildren();
  more();
}

function more() {
  const next = found.slice(shown, shown + PAGE);
  $("questions").append(...next.map(row));
  shown += next.length;
  $("more").hidden = shown >= found.length;
  const all = data.questions.length;
  $("found").textContent = `${found.length} of ${all} questions` + (shown < found.length ? `, ${shown} shown` : "");
}

let waiting = 0;
function soon() {
  clearTimeout(waiting);
  waiting = setTimeout(filter, 150);
}

function pressing(button, act) {
  button.addEventListener("click", () => {
    const on = button.getAttribute("aria-pressed") !== "true";
    button.setAttribute("aria-pressed", on);
    act(on);
  });
}

// Few strategies have axes of their own; when another is shown, all get the same.
function draw() {
  const strategies = [...document.querySelectorAll(".legend [data-strategy][aria-pressed=true]")]
    .map((button) => button.dataset.strategy);
  for (const group of document.querySelectorAll(".arms")) {
    group.classList.toggle("off", !strategies.includes(group.dataset.strategy));
  }
  const few = document.querySelector("[data-shows=few]");
  if (!few) return;
  const there = new Set([...few.querySelectorAll(".arms")].map((group) => group.dataset.strategy));
  few.hidden = strategies.some((strategy) => !there.has(strategy));
  document.querySelector("[data-shows=all]").hidden = !few.hidden;
}
for (const button of document.querySelectorAll(".legend [data-strategy]")) {
  pressing(button, draw);
  const light = (strategy) => () => {
    for (const group of document.querySelectorAll(".arms")) {
      group.classList.toggle("dim", strategy !== null && group.dataset.strategy !== strategy);
    }
  };
  button.addEventListener("pointerenter", light(button.dataset.strategy));
  button.addEventListener("pointerleave", light(null));
}
data.arms.forEach((arm, i) => {
  const chip = make("button", { className: "chip", type: "button", textContent: arm.name });
  chip.setAttribute("aria-pressed", "true");
  pressing(chip, (on) => {
    if (on) hidden.delete(i);
    else hidden.add(i);
    filter();
  });
  $("arms").append(chip);
  for (const select of document.querySelectorAll("select.arm")) {
    select.append(make("option", { value: i, textContent: arm.name }));
  }
});
$("search").addEventListener("input", soon);
for (const id of ["deep", "which", "right", "wrong"]) $(id).addEventListener("change", filter);
$("more").addEventListener("click", more);
document.querySelector(".controls").hidden = false;
filter();
