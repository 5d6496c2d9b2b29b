// The page of one prompt: chooses among the figures that Python made, and computes none.
"use strict";

{
  const data = readJson("prompt-data");
  let statistic = data.statistics[0][0];

  const show = () => {
    for (const input of byId("statistic").querySelectorAll("input")) input.checked = input.value === statistic;
    byId("greener").textContent = data.statistics.find(([name]) => name === statistic)[2];
    const holders = [...byId("figures").children];
    holders.forEach((holder, at) => {
      const first = !holder.querySelector(".canvas");
      draw(holder, data.figures[statistic][at], data.templates);
      const pan = holder.querySelector(".pan");
      if (first) pan.scrollLeft = pan.scrollWidth; // what follows the prompt stands at its right
    });
  };

  byId("title").textContent = data.title;
  byId("answer").append(...data.sentences.map((text) => element("p", {}, text)));
  byId("statistic").append(...segments("statistic", data.statistics.map(([name]) => name), (name) => {
    statistic = name;
    show();
  }, data.statistics.map(([, text]) => text)));
  byId("figures").append(...data.lenses.map((lens, at) => element("figure", {
    class: "plot tall", "data-figure": `lens-${at}`, tabindex: "0", "aria-label": `Lens ${lens}: depth by position`,
  }, element("figcaption", {}, element("h2", {}, data.named ? `Lens ${lens}` : "What each depth would say next")))));
  watchTheme(show);
  show();
  document.documentElement.setAttribute("data-ready", "");
}
