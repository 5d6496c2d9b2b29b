// A page that holds one figure.
"use strict";

{
  const { title, figure, templates } = readJson("figure-data");
  const show = () => draw(document.querySelector("[data-figure]"), figure, templates);
  byId("title").textContent = title;
  watchTheme(show);
  show();
  document.documentElement.setAttribute("data-ready", "");
}
