// An image under one of its maps: how strongly is a slider, which one is a choice, and the value of
// a place is told where the pointer is.  All numbers and colours come from the script.

const css = (colour) => `rgb(${colour.join(",")})`;
const within = (edges, place) => {
  for (let i = 0; i + 1 < edges.length; i++) if (place >= edges[i] && place < edges[i + 1]) return i;
  return -1;
};

export default function ({ data, parentElement }) {
  const root = parentElement.querySelector(".overlay");
  const [canvas, choice, slider, told, key] = ["canvas", "select", "input", ".value", ".key"].map(
    (each) => root.querySelector(each)
  );
  const photograph = root.querySelector("img");
  const { rows, cols, size, maps, start } = data;
  const [height, width] = size;
  canvas.width = width;
  canvas.height = height;
  if (photograph.getAttribute("src") !== data.picture) photograph.src = data.picture;
  photograph.alt = data.described;

  choice.replaceChildren(
    ...maps.map((map, number) => new Option(map.name, number, number === start, number === start))
  );
  let map = maps[start];

  const draw = () => {
    const ink = canvas.getContext("2d");
    ink.clearRect(0, 0, width, height);
    map.colours.forEach((line, row) =>
      line.forEach((colour, col) => {
        ink.fillStyle = css(colour);
        const [x, y] = [cols[col], rows[row]];
        ink.fillRect(x, y, cols[col + 1] - x, rows[row + 1] - y);
      })
    );
    canvas.style.opacity = slider.value / 100;
    key.replaceChildren(
      ...map.key.map(([colour, text]) => {
        const entry = document.createElement("span");
        const swatch = document.createElement("i");
        swatch.style.background = css(colour);
        entry.append(swatch, text);
        return entry;
      })
    );
    told.textContent = map.hint;
  };

  const tell = (row, col) => {
    told.textContent = row < 0 || col < 0 ? map.hint : map.told[row][col];
  };
  const point = (event) => {
    const box = canvas.getBoundingClientRect();
    tell(
      within(rows, ((event.clientY - box.top) / box.height) * height),
      within(cols, ((event.clientX - box.left) / box.width) * width)
    );
  };

  let [atRow, atCol] = [0, 0];
  const step = (event) => {
    const moves = { ArrowUp: [-1, 0], ArrowDown: [1, 0], ArrowLeft: [0, -1], ArrowRight: [0, 1] };
    const move = moves[event.key];
    if (!move) return;
    event.preventDefault();
    event.stopPropagation();
    atRow = Math.min(Math.max(atRow + move[0], 0), rows.length - 2);
    atCol = Math.min(Math.max(atCol + move[1], 0), cols.length - 2);
    tell(atRow, atCol);
  };

  canvas.onpointermove = point;
  canvas.onclick = point;
  canvas.onpointerleave = () => (told.textContent = map.hint);
  canvas.onkeydown = step;
  choice.onchange = () => {
    map = maps[choice.value];
    draw();
  };
  slider.oninput = draw;
  draw();
}
