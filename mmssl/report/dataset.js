// Filters the clips, moves between them, and shows where a player is on the time axis;
// without it the page shows all clips and the browser's own players.
"use strict";

const clips = [...document.querySelectorAll(".clip")];
const form = document.querySelector(".filters");
const players = clips.map((clip) => clip.querySelector("video, audio"));

const facts = new Map(clips.map((clip) => [clip, {
  fault: JSON.parse(clip.dataset.faults),
  missing: JSON.parse(clip.dataset.missing),
  labels: JSON.parse(clip.dataset.labels),
  text: clip.dataset.text.toLowerCase(),
}]));

function chosen(clip, option, column) {
  const fact = facts.get(clip);
  const { kind, value } = option.dataset;
  if (kind === "fault") return value ? fact.fault.includes(value) : fact.fault.length > 0;
  if (kind === "missing") return fact.missing.includes(value);
  if (kind === "none") return !fact.fault.length && !fact.missing.length;
  if (kind === "label") return fact.labels[column] === value;
  return true;
}

function filter() {
  const selects = [...form.querySelectorAll("select")];
  const text = form.elements.text.value.trim().toLowerCase();
  let shown = 0;
  for (const clip of clips) {
    const keep = facts.get(clip).text.includes(text) && selects.every(
      (select) => chosen(clip, select.selectedOptions[0], select.dataset.column));
    clip.hidden = !keep;
    if (!keep) clip.querySelector("video, audio")?.pause();
    shown += keep;
  }
  const all = shown === clips.length;
  form.querySelector("output").textContent =
    all ? `${shown} clips` : `${shown} of ${clips.length} clips`;
  empty.hidden = shown > 0;
}

const empty = document.createElement("p");
empty.className = "empty";
empty.textContent = "No clip is like this.";
empty.hidden = true;
form.after(empty);
form.hidden = false;
form.addEventListener("input", filter);
form.addEventListener("submit", (event) => event.preventDefault());
form.addEventListener("reset", () => setTimeout(filter));
filter();  // a reloaded page keeps what was chosen

function toggle(player) {
  if (!player) return;
  if (!player.paused) { player.pause(); return; }
  for (const other of players) if (other && other !== player) other.pause();
  player.play();
}

document.addEventListener("keydown", (event) => {
  if (event.ctrlKey || event.metaKey || event.altKey) return;
  if (event.target.closest?.("select, input, button, video, audio")) return;
  const there = clips.filter((clip) => !clip.hidden);
  const at = there.indexOf(document.activeElement.closest(".clip"));
  if (event.key === "j" || event.key === "k") {
    const next = event.key === "j" ? at + 1 : Math.max(at - 1, 0);
    const clip = there[Math.min(next, there.length - 1)];
    clip?.focus({ preventScroll: true });
    clip?.scrollIntoView({ block: "start" });
  } else if (event.key === "p" && at >= 0) {
    toggle(there[at].querySelector("video, audio"));
  }
});

clips.forEach((clip, index) => {
  const player = players[index];
  const lanes = clip.querySelector(".lanes");
  if (!player || !lanes) return;
  const over = lanes.querySelector(".over");
  const head = lanes.querySelector(".head");
  const length = Number(lanes.dataset.seconds);
  const follow = () => {
    head.style.left = `${100 * Math.min(1, player.currentTime / length)}%`;
    head.hidden = player.paused && player.currentTime === 0;
    if (!player.paused) requestAnimationFrame(follow);
  };
  for (const name of ["play", "pause", "ended", "seeked"]) player.addEventListener(name, follow);
  lanes.classList.add("ready");
  lanes.addEventListener("click", (event) => {
    const area = over.getBoundingClientRect();
    const share = (event.clientX - area.left) / area.width;
    if (share < 0) return;
    const seek = () => { player.currentTime = share * length; };
    if (player.readyState > 0) seek();
    else player.addEventListener("loadedmetadata", seek, { once: true });
    if (player.paused) toggle(player);
  });
});
