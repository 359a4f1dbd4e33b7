"use strict";

const theme = document.querySelector(".theme");
theme.hidden = false;
theme.querySelector("select").addEventListener("change", (event) => {
  document.documentElement.dataset.theme = event.target.value;
});

function element(name, properties) {
  return Object.assign(document.createElement(name), properties);
}

// The crops of an image are all there without this; here two of them come to lie on one another.
function slider(section) {
  const figures = [...section.querySelectorAll(".crops figure")];
  const pictures = figures.map((figure) => figure.querySelector("img"));
  const names = figures.map((figure) => figure.querySelector("figcaption").textContent);
  const box = element("div", { className: "slider " + section.querySelector(".crops").dataset.size });
  const stage = element("div", { className: "stage" });
  const range = element("input", { type: "range", min: 0, max: 100, step: 1, value: 50 });
  range.setAttribute("aria-label", "How much of the left picture is seen");
  const ends = element("div", { className: "ends" });

  function side(words, chosen, place) {
    const image = element("img", { className: place, alt: "" });
    const select = element("select", {});
    names.forEach((name, index) => select.append(element("option", { value: index, textContent: name })));
    select.value = chosen;
    const label = element("label", { textContent: words });
    label.append(select);
    ends.append(label);
    const show = () => {
      image.src = pictures[select.value].src;
      image.alt = pictures[select.value].alt;
    };
    select.addEventListener("change", show);
    show();
    return image;
  }

  const before = names.indexOf("bicubic");
  const left = side("left", before, "left");
  const right = side("right", Math.max(before + 1, figures.length - 2), "right");
  stage.append(right, left);

  const cut = () => stage.style.setProperty("--cut", range.value + "%");
  range.addEventListener("input", cut);
  function follow(event) {
    const frame = stage.getBoundingClientRect();
    range.value = (100 * (event.clientX - frame.left)) / frame.width;
    cut();
  }
  stage.addEventListener("pointerdown", (event) => {
    stage.setPointerCapture(event.pointerId);
    event.preventDefault();
    follow(event);
  });
  stage.addEventListener("pointermove", (event) => {
    if (stage.hasPointerCapture(event.pointerId)) follow(event);
  });
  cut();
  box.append(ends, stage, range);
  section.querySelector(".beside").prepend(box);
}

document.querySelectorAll("section.image").forEach(slider);
