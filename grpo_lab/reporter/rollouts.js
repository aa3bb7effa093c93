"use strict";
// Filters the completions of #rollouts-data. They are other people's text: only ever textContent.
(() => {
  const SHOWN = 10;
  const field = (name) => document.getElementById("rollouts-" + name);
  const data = JSON.parse(field("data").textContent);
  const [STEP, PROMPT, TEXT, REWARDS, REWARD, ADVANTAGE, TOKENS, CUT, CHARACTERS] = Array(9).keys();
  const ORDERS = {
    recorded: () => 0,
    lowest: (a, b) => (a[REWARD] ?? Infinity) - (b[REWARD] ?? Infinity),
    highest: (a, b) => (b[REWARD] ?? -Infinity) - (a[REWARD] ?? -Infinity),
    longest: (a, b) => size(b) - size(a),
    shortest: (a, b) => size(a) - size(b),
  };
  const size = (row) => row[TOKENS] ?? row[CHARACTERS];
  const number = (value) => (value === null ? "none" : String(Math.round(value * 1000) / 1000));
  let run, steps, matching, shown;

  function element(name, className, text) {
    const made = document.createElement(name);
    made.className = className;
    made.textContent = text;
    return made;
  }

  function chooseRun() {
    run = data.runs[Number(field("run").value)];
    steps = [...new Set(run.rows.map((row) => row[STEP]))].sort((a, b) => a - b);
    field("step").max = steps.length;
    field("step").value = 0;
    filter();
  }

  function within(value, name) {
    const [low, high] = ["-from", "-to"].map((end) => field(name + end).valueAsNumber);
    return (Number.isNaN(low) || value >= low) && (Number.isNaN(high) || value <= high);
  }

  function fits(row) {
    const place = Number(field("step").value), cut = field("cut").value, wanted = field("text").value.toLowerCase();
    return (place === 0 || row[STEP] === steps[place - 1])
      && within(row[REWARD], "reward") && within(size(row), "length")
      && (cut === "any" || row[CUT] === (cut === "cut"))
      && (row[TEXT] + "\n" + data.prompts[row[PROMPT]]).toLowerCase().includes(wanted);
  }

  function filter() {
    const place = Number(field("step").value);
    field("step-shown").textContent = place === 0 ? "all" : String(steps[place - 1]);
    matching = run.rows.filter(fits).sort(ORDERS[field("order").value]);
    field("list").replaceChildren();
    shown = 0;
    more();
  }

  function more() {
    field("list").append(...matching.slice(shown, shown + SHOWN).map(card));
    shown = Math.min(shown + SHOWN, matching.length);
    field("count").textContent = `${shown} of ${matching.length} that fit, ${run.rows.length} in this page`;
    field("more").hidden = shown === matching.length;
  }

  function card(row) {
    const made = element("article", "rollout", "");
    const parts = run.rewards.map((name, place) => `${name} ${number(row[REWARDS][place])}`);
    const facts = [`step ${row[STEP]}`, ...parts, `advantage ${number(row[ADVANTAGE])}`,
      row[TOKENS] === null ? `${row[CHARACTERS]} characters` : `${row[TOKENS]} tokens`, ...(row[CUT] ? ["cut off"] : [])];
    const head = element("p", "soft", "");
    head.append(element("b", "", `reward ${number(row[REWARD])}`), " " + facts.join(" · "));
    const texts = [["prompt", data.prompts[row[PROMPT]]], ["completion", row[TEXT] || "(empty)"]].map(([name, text]) => {
      const block = element("pre", name, text);
      block.dir = "auto";
      return block;
    });
    made.append(head, ...texts);
    return made;
  }

  data.runs.forEach((one, place) => field("run").add(new Option(one.name, place)));
  field("run").parentElement.hidden = data.runs.length < 2;
  field("cut").parentElement.hidden = data.runs.every((one) => one.rows.every((row) => row[CUT] === null));
  field("run").addEventListener("change", chooseRun);
  field("filters").addEventListener("input", (event) => event.target === field("run") || filter());
  field("more").addEventListener("click", more);
  chooseRun();
})();
