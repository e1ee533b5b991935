(() => {
  const root = document.documentElement, button = document.getElementById("theme");
  const system = matchMedia("(prefers-color-scheme: dark)");
  const dark = () => (root.dataset.theme || (system.matches ? "dark" : "light")) === "dark";
  const label = () => { button.textContent = dark() ? "Light page" : "Dark page"; };
  button.addEventListener("click", () => {
    root.dataset.theme = dark() ? "light" : "dark";
    label();
  });
  system.addEventListener("change", label);
  label();
  button.hidden = false;

  // Drawings are drawn anew where they stand once they are seen, so that they answer the pointer.
  // What draws them is in the page, packed; where anything is missing, the drawings stay still.
  const drawer = document.getElementById("drawer"), charts = document.getElementById("charts");
  if (!drawer || !window.DecompressionStream || !window.IntersectionObserver) return;
  const unpacked = (element) => {
    const bytes = Uint8Array.from(atob(element.textContent), (letter) => letter.charCodeAt(0));
    const stream = new Blob([bytes]).stream().pipeThrough(new DecompressionStream("gzip"));
    return new Response(stream).text();
  };
  let started;
  const start = async () => {
    const script = document.createElement("script");
    script.textContent = await unpacked(drawer);
    document.head.append(script);
    return JSON.parse(await unpacked(charts));
  };
  const draw = async (figure) => {
    const specs = await (started ??= start());
    const holder = figure.querySelector(".drawing"), still = holder.querySelector("svg");
    const narrow = holder.clientWidth < 500;
    const place = document.createElement("div");
    const options = { renderer: "svg", actions: false, ast: true, defaultStyle: false,
                      tooltip: { theme: "page" } };
    await window.vegaEmbed(place, specs[figure.id][narrow ? "narrow" : "wide"], options);
    const drawn = place.querySelector("svg");
    for (const name of ["role", "aria-label"]) drawn.setAttribute(name, still.getAttribute(name));
    holder.classList.toggle("narrow", narrow);
    still.replaceWith(place);
    figure.dataset.live = "";
  };
  const seen = new IntersectionObserver((entries) => {
    for (const entry of entries) {
      if (!entry.isIntersecting) continue;
      seen.unobserve(entry.target);
      draw(entry.target).catch(() => {});
    }
  }, { rootMargin: "300px" });
  document.querySelectorAll("figure").forEach((figure) => seen.observe(figure));
})();
