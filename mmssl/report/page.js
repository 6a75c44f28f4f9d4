// Reads values off the curves and plays the clips' sound; the page works without it.
"use strict";

for (const svg of document.querySelectorAll("svg.chart")) {
  const series = JSON.parse(svg.dataset.points);
  const figure = svg.parentElement;
  const box = svg.viewBox.baseVal;
  const tip = document.createElement("div");
  tip.className = "tip";
  tip.hidden = true;
  figure.append(tip);
  const cursor = document.createElementNS(svg.namespaceURI, "line");
  cursor.setAttribute("class", "cursor");
  cursor.setAttribute("y1", 12);
  cursor.setAttribute("y2", box.height - 24);
  cursor.style.display = "none";
  svg.append(cursor);
  const hide = () => { tip.hidden = true; cursor.style.display = "none"; };
  const show = (event) => {
    const area = svg.getBoundingClientRect();
    const x = (event.clientX - area.left) * box.width / area.width;
    let at = null;
    tip.replaceChildren();
    for (const one of series) {
      let best = 0;
      one.x.forEach((v, i) => { if (Math.abs(v - x) < Math.abs(one.x[best] - x)) best = i; });
      if (at === null) {
        at = one.x[best];
        tip.append(`step ${one.step[best].toLocaleString("en")}`);
      }
      const row = document.createElement("div");
      const key = document.createElement("i");
      key.className = `key ${one.color}`;
      row.append(key, series.length > 1 ? `${one.name} ${one.text[best]}` : one.text[best]);
      tip.append(row);
    }
    if (at === null) return;
    cursor.setAttribute("x1", at);
    cursor.setAttribute("x2", at);
    cursor.style.display = "";
    tip.hidden = false;
    const left = at * area.width / box.width;
    const flip = left + tip.offsetWidth + 14 > area.width;
    tip.style.left = `${flip ? Math.max(0, left - tip.offsetWidth - 10) : left + 10}px`;
    tip.style.top = `${svg.offsetTop + 16}px`;
  };
  svg.addEventListener("pointermove", show);
  svg.addEventListener("pointerdown", show);
  svg.addEventListener("pointerleave", hide);
}

for (const sound of document.querySelectorAll(".sound")) {
  const audio = sound.querySelector("audio");
  if (!audio) continue;
  audio.hidden = true;
  audio.removeAttribute("controls");
  const button = document.createElement("button");
  button.type = "button";
  button.setAttribute("aria-label", "Play the sound");
  const head = document.createElement("span");
  head.className = "head";
  head.hidden = true;
  sound.classList.add("ready");
  sound.append(button, head);
  const wave = sound.querySelector(".wave");
  const follow = () => {
    const share = audio.duration ? audio.currentTime / audio.duration : 0;
    head.style.left = `${40 + share * wave.clientWidth}px`;
    head.hidden = audio.paused;
    sound.classList.toggle("playing", !audio.paused);
    if (!audio.paused) requestAnimationFrame(follow);
  };
  sound.addEventListener("click", () => {
    if (!audio.paused) { audio.pause(); return; }
    for (const other of document.querySelectorAll("audio")) other.pause();
    audio.play();
  });
  for (const name of ["play", "pause", "ended"]) audio.addEventListener(name, follow);
}
