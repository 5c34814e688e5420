// Apply the chosen theme before the first paint. Without a choice the system decides.
(() => {
  let theme = null;
  try { theme = localStorage.getItem("theme"); } catch { /* no storage: the system decides */ }
  if (theme === "light" || theme === "dark") document.documentElement.dataset.theme = theme;
  document.documentElement.classList.add("js");
})();
