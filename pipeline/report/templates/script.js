// Names the nearest point of a learning curve. The page is complete without it.
const tips = JSON.parse(document.getElementById("tips").textContent);
for (const figure of document.querySelectorAll("figure[data-curves]")) {
  const members = tips[figure.dataset.curves];
  const points = [...figure.querySelectorAll("g[id*='points-'] use")].map((point) => {
    const group = point.closest("g[id*='points-']");
    const siblings = [...group.querySelectorAll("use")];
    return { point, member: members[Number(group.id.split("points-")[1])], epoch: siblings.indexOf(point) };
  });
  const tip = document.createElement("div");
  tip.className = "tip";
  tip.hidden = true;
  figure.append(tip);
  figure.addEventListener("pointermove", (event) => {
    const box = figure.getBoundingClientRect();
    let nearest, least = Infinity;
    for (const each of points) {
      const at = each.point.getBoundingClientRect();
      const distance = Math.hypot(at.x + at.width / 2 - event.clientX, at.y + at.height / 2 - event.clientY);
      if (distance < least) [nearest, least] = [{ ...each, at }, distance];
    }
    tip.hidden = least > 40;
    if (tip.hidden) return;
    tip.textContent = `${nearest.member.member}, epoch ${nearest.epoch + 1}: ${nearest.member.values[nearest.epoch]}`;
    const left = nearest.at.x - box.x - tip.offsetWidth / 2;
    tip.style.left = `${Math.max(0, Math.min(left, box.width - tip.offsetWidth))}px`;
    tip.style.top = `${nearest.at.y - box.y - tip.offsetHeight - 8}px`;
  });
  figure.addEventListener("pointerleave", () => { tip.hidden = true; });
}
