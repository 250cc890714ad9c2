// Links between views stay in the session: a click tells the script where to go, and the page is
// not loaded anew.  With a modifier key, or before this runs, they are plain links.

const typing = (node) => node?.closest?.("input, textarea, select, [contenteditable=true]");

export default function ({ setTriggerValue }) {
  const go = (link) => setTriggerValue("to", link.pathname + link.search);

  const follow = (event) => {
    const plain = !(event.metaKey || event.ctrlKey || event.shiftKey || event.altKey);
    const link = event.composedPath().find((node) => node.matches?.("a.go"));
    if (link && plain && event.button === 0 && !event.defaultPrevented) {
      event.preventDefault();
      go(link);
    }
  };

  const press = (event) => {
    if (event.metaKey || event.ctrlKey || event.altKey || typing(event.target)) return;
    const wanted = { ArrowLeft: "prev", ArrowRight: "next" }[event.key];
    const link = wanted && document.querySelector(`a.go[rel=${wanted}]`);
    if (link) go(link);
    if (event.key === "/") {
      document.querySelector("[data-testid=stSidebar] input")?.focus();
      event.preventDefault();
    }
  };

  document.body.dataset.following = "";
  document.addEventListener("click", follow);
  document.addEventListener("keydown", press);
  return () => {
    delete document.body.dataset.following;
    document.removeEventListener("click", follow);
    document.removeEventListener("keydown", press);
  };
}
