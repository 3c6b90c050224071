// Copying an answer, saving a conversation, and keeping the newest turn in sight.
document.addEventListener("click", async (event) => {
  const button = event.target.closest("[data-copy]");
  if (!button) return;
  const text = button.dataset.copy;
  try { await navigator.clipboard.writeText(text); } catch {
    const area = document.createElement("textarea");
    area.value = text; document.body.append(area); area.select(); document.execCommand("copy"); area.remove();
  }
  button.textContent = "Copied"; setTimeout(() => { button.textContent = "Copy"; }, 1500);
});
function saveConversation(text) {
  if (!text) return;
  const link = document.createElement("a");
  link.href = URL.createObjectURL(new Blob([text], {type: "application/json"}));
  link.download = "conversation.json"; link.click(); setTimeout(() => URL.revokeObjectURL(link.href), 1000);
}
// The newest turn stays in sight, unless somebody has scrolled up to read an older one.
let questions = 0, near = true, last = 0;
document.addEventListener("scroll", (event) => {
  const box = event.target;
  if (box.id === "chat") near = box.scrollHeight - box.scrollTop - box.clientHeight < 60;
}, true);
new MutationObserver(() => {
  const box = document.querySelector("#chat");
  if (!box) return;
  const count = box.querySelectorAll(".question").length;
  if (box.scrollTop < last - 1) near = false;  // scrolled up since, and the event for it is still to come
  if (near || count > questions) box.scrollTop = box.scrollHeight;
  questions = count; last = box.scrollTop;
}).observe(document, {subtree: true, childList: true, characterData: true});
