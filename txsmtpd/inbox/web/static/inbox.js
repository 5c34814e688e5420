// What the pages do beyond links and forms: theme, keyboard, selection, following the newest message, live state.
// All of it is optional: without JavaScript the same pages work by links and forms.

const $ = (selector, within = document) => within.querySelector(selector);
const all = (selector, within = document) => [...within.querySelectorAll(selector)];
const store = {
  get(name) { try { return localStorage.getItem(name); } catch { return null; } },
  set(name, value) { try { value === null ? localStorage.removeItem(name) : localStorage.setItem(name, value); } catch { /* stays for this page only */ } },
};
const announce = (text) => { $("#announce").textContent = text; };

// Theme: system, light, dark

const themes = ["system", "light", "dark"];
function showTheme() {
  const theme = document.documentElement.dataset.theme ?? "system";
  const label = `Theme: ${theme}`;
  $("#theme").title = label;
  $("#theme").setAttribute("aria-label", label);
}
$("#theme").hidden = false;
$("#theme").addEventListener("click", () => {
  const now = document.documentElement.dataset.theme ?? "system";
  const next = themes[(themes.indexOf(now) + 1) % themes.length];
  if (next === "system") delete document.documentElement.dataset.theme;
  else document.documentElement.dataset.theme = next;
  store.set("theme", next === "system" ? null : next);
  showTheme();
});
showTheme();

// Live updates

const live = $("#live");
function showLive(on) {
  live.hidden = false;
  live.classList.toggle("off", !on);
  live.title = on ? "Live updates are on" : "Disconnected from the server; reconnecting";
  const text = on ? "Live updates are on" : "Offline";
  const label = $("span", live);
  label.className = on ? "sr" : "";
  if (label.textContent !== text) label.textContent = text;
}
document.body.addEventListener("htmx:sseOpen", () => showLive(true));
for (const name of ["htmx:sseError", "htmx:sendError"]) document.body.addEventListener(name, () => showLive(false));

// The list: selection and scroll position survive its updates

const rows = () => all(".row");
const current = () => $(".row.current");
let selection = new Set();
let scrolled = null;
let known = new Set(rows().map((row) => row.dataset.id));
let following = store.get("follow") === "1";

function showSelection() {
  const checked = all('.row > input:checked');
  for (const row of rows()) row.classList.toggle("selected", $("input", row).checked);
  const label = $("#selected");
  if (!label) return;
  label.hidden = checked.length === 0;
  $("#total").hidden = checked.length > 0;
  label.textContent = `${checked.length} selected`;
  const box = $("#select-all");
  for (const button of all('.toolbar > button[name="action"]')) button.disabled = checked.length === 0;
  box.checked = checked.length > 0 && checked.length === rows().length;
  box.indeterminate = checked.length > 0 && !box.checked;
}
function setUpList() {
  const box = $("#select-all");
  if (!box) return;
  box.hidden = false;
  const button = $("#follow");
  button.hidden = false;
  button.setAttribute("aria-pressed", String(following));
  showSelection();
}
function showMoves() {
  const list = rows();
  const at = list.indexOf(current());
  for (const button of all("[data-move]")) button.disabled = at < 0 || !list[at + Number(button.dataset.move)];
}
function markCurrent(id) {
  for (const row of rows()) {
    const is = row.dataset.id === id;
    row.classList.toggle("current", is);
    if (is) { row.classList.remove("unread"); $("a", row).setAttribute("aria-current", "true"); }
    else $("a", row).removeAttribute("aria-current");
  }
  showMoves();
}
document.addEventListener("change", (event) => {
  if (event.target.id === "select-all") for (const row of rows()) $("input", row).checked = event.target.checked;
  if (event.target.closest("#list")) showSelection();
  if (event.target.id === "keys-on") store.set("keys", event.target.checked ? null : "0");
});
// Which row is at the top of a scrolled list, and where; null while the newest message shows.
function scrollPlace() {
  const list = $(".messages");
  if (!list || list.scrollTop === 0) return null;
  const edge = list.getBoundingClientRect().top;
  const row = rows().find((each) => each.getBoundingClientRect().bottom > edge);
  return { id: row?.dataset.id, y: row?.getBoundingClientRect().top, scrollTop: list.scrollTop };
}
function scrollBack(place) {
  const list = $(".messages");
  if (!place || !list) return;
  list.scrollTop = place.scrollTop;
  const row = rows().find((each) => each.dataset.id === place.id);
  if (row) list.scrollTop += row.getBoundingClientRect().top - place.y;
}
document.body.addEventListener("htmx:beforeSwap", (event) => {
  if (event.detail.target?.id !== "list") return;
  selection = new Set(all('.row > input:checked').map((box) => box.value));
  scrolled = scrollPlace();
});
document.body.addEventListener("htmx:afterSwap", (event) => {
  const target = event.detail.target?.id;
  if (target === "list") {
    for (const row of rows()) if (selection.has(row.dataset.id)) $("input", row).checked = true;
    const open = $("#detail")?.dataset.id;
    if (open) markCurrent(open);
    const fresh = rows().filter((row) => !known.has(row.dataset.id));
    for (const row of fresh) row.classList.add("arrived");
    if (fresh.length) announce(fresh.length === 1 ? `New message: ${$(".subject", fresh[0]).textContent}` : `${fresh.length} new messages`);
    known = new Set([...known, ...rows().map((row) => row.dataset.id)]);
    setUpList();
    scrollBack(scrolled);
    if (following && fresh.length) open_(rows()[0]);
  }
  if (target === "detail") {
    markCurrent($("#detail").dataset.id);
    setUpMessage();
  }
});
document.body.addEventListener("htmx:historyRestore", () => location.reload());
window.addEventListener("popstate", () => location.reload());

// The message

function setUpMessage() {
  const frame = $("iframe.mail");
  const button = $("#mail-dark");
  if (button) {
    button.hidden = false;
    const dark = store.get("mail-dark") === "1";
    button.setAttribute("aria-pressed", String(dark));
    frame.classList.toggle("dark", dark);
  }
  $(".tabs [aria-current]")?.scrollIntoView({ block: "nearest", inline: "nearest" });
  const subject = $("#detail .message h1")?.textContent;
  if (subject) document.title = `${subject} · Inbox`;
}
document.addEventListener("click", (event) => {
  const button = event.target.closest("button, a");
  if (!button) return;
  if (button.id === "mail-dark") {
    store.set("mail-dark", button.getAttribute("aria-pressed") === "true" ? null : "1");
    setUpMessage();
  } else if (button.dataset.width) {
    event.preventDefault();
    const frame = $("iframe.mail");
    frame.className = frame.className.replace(/width-\w+/, `width-${button.dataset.width}`);
    for (const each of all("[data-width]")) each.toggleAttribute("aria-current", each === button);
    button.setAttribute("aria-current", "true");
  } else if (button.dataset.move) {
    const list = rows();
    $("a", list[list.indexOf(current()) + Number(button.dataset.move)]).click();
  } else if (button.dataset.copy) {
    navigator.clipboard?.writeText(button.dataset.copy).then(() => { button.classList.add("copied"); announce("Copied"); });
  } else if (button.id === "follow") follow();
  else if (button.id === "help") $("#shortcuts").showModal();
});
document.addEventListener("click", (event) => {
  for (const menu of all("details.menu[open]")) if (!menu.contains(event.target)) menu.open = false;
});

function follow() {
  following = !following;
  store.set("follow", following ? "1" : null);
  $("#follow")?.setAttribute("aria-pressed", String(following));
  announce(following ? "New messages are opened as they arrive" : "New messages are not opened");
  if (following && rows()[0]) open_(rows()[0]);
}

// The keyboard

const open_ = (row) => { const link = $("a", row); link.click(); link.focus({ preventScroll: true }); row.scrollIntoView({ block: "nearest" }); };
function focused() { return document.activeElement?.closest(".row") ?? current(); }
function move(step) {
  const list = rows();
  const at = list.indexOf(focused());
  const next = list[at < 0 ? 0 : Math.min(Math.max(at + step, 0), list.length - 1)];
  if (next) open_(next);
}
const press = (selector) => $(selector)?.click();
const keys = {
  j: () => move(1),
  k: () => move(-1),
  "/": () => { $("#query").focus(); $("#query").select(); },
  "?": () => $("#shortcuts").showModal(),
  f: follow,
  r: () => window.htmx?.trigger("#list-updates", "inbox:reload"),
  u: () => press("#mark-unread"),
  d: () => press($(".row > input:checked") ? '#actions button[value="delete"]' : "#delete"),
  x: () => { const row = focused(); if (row) { const box = $("input", row); box.checked = !box.checked; showSelection(); } },
  Escape: () => press("#back"),
};
["html", "markup", "text", "source", "headers", "envelope", "session", "parts", "check"].forEach((name, at) => { keys[at + 1] = () => press(`#tab-${name}`); });

let before = "";
document.addEventListener("keydown", (event) => {
  const menu = $("details.menu[open]");
  if (event.key === "Escape" && menu) { menu.open = false; $("summary", menu).focus(); return; }
  const typing = event.target.closest("input:not([type=checkbox]), textarea, select, dialog[open]");
  if (event.key === "Escape" && typing?.matches("input")) { typing.blur(); return; }
  if (typing || event.ctrlKey || event.metaKey || event.altKey) return;
  if (store.get("keys") === "0" && event.key !== "Escape") return;
  if (event.key === "g" && before === "g") { before = ""; if (rows()[0]) open_(rows()[0]); return; }
  before = event.key;
  const action = keys[event.key];
  if (action) { event.preventDefault(); action(); }
});
$("#help").hidden = false;
$("#keys-on").checked = store.get("keys") !== "0";

// Ages grow while the page is open

function age(seconds) {
  if (seconds < 45) return "now";
  if (seconds < 3600) return `${Math.max(1, Math.round(seconds / 60))} min`;
  if (seconds < 86400) return `${Math.round(seconds / 3600)} h`;
  return null;
}
setInterval(() => {
  for (const time of all("time[data-age]")) time.textContent = age(Date.now() / 1000 - Number(time.dataset.age)) ?? time.textContent;
}, 15000);

setUpList();
setUpMessage();
showMoves();
current()?.scrollIntoView({ block: "nearest" });
