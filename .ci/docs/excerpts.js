// The search reads other pages for their excerpts; opened from a file it may not, so the texts are here.
(() => {
  const texts = TEXTS, ask = window.fetch;
  window.fetch = (address, ...more) => {
    const page = typeof address === "string" ? address.replace(/^(\.?\/)+/, "").replace(/[?#].*/, "") : "";
    return page in texts ? Promise.resolve(new Response(texts[page])) : ask(address, ...more);
  };
})();
