"use strict";
// Follows a request: whenever the server says that it has changed, the page is fetched again and its parts are exchanged.
(() => {
  const start = document.querySelector("[data-events]");
  const connection = document.getElementById("connection");
  const announce = document.getElementById("announce");
  const ANNOUNCE_MS = 5000;
  const POLL_MS = 5000;
  let busy = false, again = false, finished = false, announced = 0, timer = 0;

  function say(text) {
    if (connection.textContent !== text) connection.textContent = text;
    connection.hidden = !text;
  }

  // The element that has the focus is another one after the exchange: find it by what it leads to.
  function exchange(fresh) {
    for (const part of document.querySelectorAll("[data-part]")) {
      const next = fresh.getElementById(part.id);
      if (!next || part.innerHTML === next.innerHTML) continue;
      const focused = part.contains(document.activeElement) ? document.activeElement.getAttribute("href") : null;
      part.replaceChildren(...next.childNodes);
      part.dataset.summary = next.dataset.summary || "";
      if (focused) part.querySelector(`[href="${CSS.escape(focused)}"]`)?.focus({ preventScroll: true });
    }
    document.title = fresh.title;
    const progress = fresh.getElementById("progress");
    if (progress && !progress.dataset.live) finished = true;
    const summary = start.dataset.summary;
    // A screen reader must not be talked over.
    if (summary !== announce.textContent && (finished || Date.now() - announced > ANNOUNCE_MS)) {
      announce.textContent = summary;
      announced = Date.now();
    }
  }

  async function refresh() {
    if (busy) { again = true; return; }
    busy = true;
    try {
      const answer = await fetch(location.href, { credentials: "same-origin" });
      if (answer.redirected) { location.reload(); return; }
      if (!answer.ok) throw new Error(answer.status);
      exchange(new DOMParser().parseFromString(await answer.text(), "text/html"));
      say("");
    } catch {
      say("The coordinator does not answer: what is shown may be old. Trying again.");
    } finally {
      busy = false;
      if (again) { again = false; refresh(); }
    }
  }

  function poll() {
    if (timer) return;
    timer = setInterval(() => (finished ? clearInterval(timer) : refresh()), POLL_MS);
  }

  const events = new EventSource(start.dataset.events);
  events.addEventListener("changed", refresh);
  events.addEventListener("finished", () => { finished = true; events.close(); refresh(); });
  events.addEventListener("open", () => say(""));
  events.addEventListener("error", () => {
    // The browser tries again by itself, unless it was refused.
    if (events.readyState === EventSource.CLOSED) poll();
    refresh();
  });
})();
