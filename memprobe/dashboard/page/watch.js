// A page that a server shows: it asks for a newer one and takes it, with the reader's selection and place kept.
"use strict";

const PLACE = "memprobe-scroll";

function watchServer() {
  const live = byId("live");
  let newer = false;
  live.hidden = false;
  live.textContent = "live";
  const held = sessionStorage.getItem(PLACE);
  sessionStorage.removeItem(PLACE);
  if (held !== null) {
    const waiting = setInterval(() => {
      if (!document.documentElement.hasAttribute("data-ready")) return;
      clearInterval(waiting);
      scrollTo(0, Number(held));
    }, 50);
  }
  const ask = async () => {
    try {
      const answer = await (await fetch("version", { cache: "no-store" })).json();
      newer ||= answer.version !== report.version;
      live.textContent = answer.note || "live";
      live.classList.toggle("stale", Boolean(answer.note));
    } catch {
      live.textContent = "the server has stopped";
      live.classList.add("stale");
    }
    // Nobody is interrupted while typing.
    if (newer && document.activeElement?.id !== "search") {
      sessionStorage.setItem(PLACE, String(scrollY));
      location.reload();
      return;
    }
    setTimeout(ask, 1_500);
  };
  setTimeout(ask, 1_500);
}
watchServer();
