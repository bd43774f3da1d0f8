/* The enlarged view of a table of images: arrow keys move through it, + and - zoom, a slider compares two images,
   and the words of a prompt show where they act. */
(() => {
    "use strict";
    const lt = (window.loraTrain = window.loraTrain || {});
    const make = (...all) => lt.make(...all);
    const image = (token) => lt.url(`image/${token}`);
    const MAX_ZOOM = 8;
    const ZOOM_STEP = 1.25;

    /* `table` is rows of cells {token, title, text} or null. `other` is what the image is compared with: "" for nothing,
       "first" for the first row, "before" for the row above, or a cell. */
    let view = null;
    const box = () => document.getElementById("lora_train_view");

    /** Show a cell. `source` is what `refreshView` recognises the table by when more of it is drawn. */
    lt.enlarge = (table, row, column, source = null) => {
        view = { table, row, column, source, other: "", zoom: 1, x: 0, y: 0, share: 50, before: document.activeElement };
        document.body.append(build());
        box().focus();
        show();
    };
    lt.refreshView = (source) => {
        if (!view || view.source !== source) return;
        view.table = source.table;
        show();
    };

    // --- the parts --------------------------------------------------------------------------------
    const tool = (label, title, work, className = "") => {
        const button = make("button", { type: "button", className: `lt-view-tool ${className}`, title, "aria-label": title }, label);
        button.onclick = work;
        return button;
    };

    function build() {
        const slider = make("input", { type: "range", min: "0", max: "100", value: "50", className: "lt-view-slider", title: "Move the border between the two images", "aria-label": "Border between the two images" });
        slider.dataset.ltOwn = "yes";
        slider.oninput = () => {
            view.share = Number(slider.value);
            place();
        };
        const stage = make("div", { className: "lt-view-stage" },
            make("img", { className: "lt-view-image", alt: "", draggable: false }),
            make("img", { className: "lt-view-map", alt: "", draggable: false, hidden: true }),
            make("img", { className: "lt-view-other", alt: "", draggable: false, hidden: true }),
            make("img", { className: "lt-view-map lt-view-other", alt: "", draggable: false, hidden: true }),
            make("i", { className: "lt-view-border", hidden: true }));
        addGestures(stage);
        view.words = lt.viewWords([...stage.querySelectorAll(".lt-view-map")]);
        const made = make("div", { id: "lora_train_view", role: "dialog", "aria-modal": "true", "aria-label": "Image" },
            make("button", { className: "lt-close", type: "button", title: "Close (Escape)", "aria-label": "Close" }, "×"),
            stage, slider,
            make("div", { className: "lt-view-tools", role: "toolbar", "aria-label": "View" },
                tool("−", "Zoom out (-)", () => zoomBy(1 / ZOOM_STEP)),
                tool("100%", "Whole image (0)", () => zoomTo(1), "lt-view-zoom"),
                tool("+", "Zoom in (+)", () => zoomBy(ZOOM_STEP)),
                tool("No LoRA", "Compare with the first row (C)", () => compare("first"), "lt-view-first"),
                tool("Row above", "Compare with the row above (B)", () => compare("before"), "lt-view-before"),
                tool("Pin", "Keep this image, to compare others with it (P)", pin, "lt-view-pin"),
                tool("Words", "Show where in the image the words of its prompt act (W)", showWords, "lt-view-act")),
            view.words,
            make("p", { "aria-live": "polite" }));
        made.setAttribute("tabindex", "-1");
        made.onclick = (event) => {
            if (event.target === made || event.target.closest(".lt-close")) close();
        };
        return made;
    }

    function close() {
        view.words.stop();
        box().remove();
        if (view.before && view.before.focus) view.before.focus();
        view = null;
    }

    // --- what is shown ----------------------------------------------------------------------------
    const current = () => view.table[view.row][view.column];

    /** The cell that the current one is compared with; null for none, and for itself. */
    function otherCell() {
        if (!view.other) return null;
        const rowAbove = view.table[view.row - 1];
        const cell = view.other === "first" ? view.table[0][view.column] : view.other === "before" ? rowAbove && rowAbove[view.column] : view.other;
        return cell && cell.token !== current().token ? cell : null;
    }

    function show() {
        const cell = current();
        const other = otherCell();
        const set = (name, one) => {
            const element = box().querySelector(name);
            element.hidden = !one;
            if (one && element.dataset.token !== one.token) Object.assign(element, { src: image(one.token), alt: `${one.title}: ${one.text}` });
            element.dataset.token = one ? one.token : "";
        };
        set(".lt-view-image", cell);
        set(".lt-view-other:not(.lt-view-map)", other);
        for (const name of [".lt-view-slider", ".lt-view-border"]) box().querySelector(name).hidden = !other;
        const rows = view.table.length;
        const press = (name, isOn, isUsable) => {
            const button = box().querySelector(name);
            button.setAttribute("aria-pressed", String(isOn));
            button.hidden = !isUsable;
        };
        press(".lt-view-first", view.other === "first", rows > 1);
        press(".lt-view-before", view.other === "before", rows > 1);
        press(".lt-view-pin", view.other !== "" && typeof view.other !== "string", rows > 1 || view.table[0].length > 1);
        press(".lt-view-act", view.words.isOn(), Boolean(cell.hasHeatMaps));
        const isSheet = rows > 1 || view.table[0].length > 1;
        box().querySelector("p").replaceChildren(
            ...(other ? [make("b", {}, `${other.title} | ${cell.title}`)] : [make("b", {}, cell.title)]),
            make("span", {}, other && other.text !== cell.text ? `${other.text} | ${cell.text}` : cell.text),
            ...(cell.hasHeatMaps && !other ? [lt.heatMapButton(cell)] : []),
            ...(isSheet ? [make("kbd", {}, rows > 1 ? "← → prompts  ↑ ↓ epochs" : "← →")] : []));
        view.words.follow(cell, other);
        place();
    }

    /** Apply zoom, position and the border of the comparison. */
    function place() {
        const stage = box().querySelector(".lt-view-stage");
        const { width, height } = stage.getBoundingClientRect();
        const limit = (value, size) => Math.max(-size * (view.zoom - 1) / 2, Math.min(size * (view.zoom - 1) / 2, value));
        view.x = limit(view.x, width);
        view.y = limit(view.y, height);
        for (const element of stage.querySelectorAll("img")) element.style.transform = `translate(${view.x}px, ${view.y}px) scale(${view.zoom})`;
        // The border stays where it is on the stage, so its place in the zoomed image is computed back.
        const share = width ? ((view.share / 100 - 0.5) * width - view.x) / view.zoom / width + 0.5 : 0.5;
        for (const element of stage.querySelectorAll(".lt-view-other")) element.style.clipPath = `inset(0 ${100 - Math.max(0, Math.min(1, share)) * 100}% 0 0)`;
        stage.querySelector(".lt-view-border").style.left = `${view.share}%`;
        stage.classList.toggle("lt-zoomed", view.zoom > 1);
        box().querySelector(".lt-view-slider").value = String(view.share);
        box().querySelector(".lt-view-zoom").textContent = `${Math.round(view.zoom * 100)}%`;
    }

    // --- commands ---------------------------------------------------------------------------------
    /** Zoom so that the point (x, y), from the middle of the stage, stays where it is. */
    function zoomTo(zoom, x = 0, y = 0) {
        const next = Math.max(1, Math.min(MAX_ZOOM, zoom));
        view.x = x - (x - view.x) * next / view.zoom;
        view.y = y - (y - view.y) * next / view.zoom;
        view.zoom = next;
        place();
    }
    const zoomBy = (factor, x, y) => zoomTo(view.zoom * factor, x, y);

    function compare(other) {
        view.other = view.other === other ? "" : other;
        show();
    }

    function pin() {
        view.other = view.other && typeof view.other !== "string" ? "" : current();
        show();
    }

    function showWords() {
        view.words.toggle();
        box().classList.toggle("lt-with-words", view.words.isOn());
        show();
    }

    /** Move to the nearest cell with an image in a direction, if there is one. */
    function step(down, right) {
        let { row, column } = view;
        do {
            row += down;
            column += right;
            if (!view.table[row] || column < 0 || column >= view.table[row].length) return;
        } while (!view.table[row][column]);
        Object.assign(view, { row, column });
        show();
    }

    const KEYS = {
        ArrowLeft: () => step(0, -1),
        ArrowRight: () => step(0, 1),
        ArrowUp: () => step(-1, 0),
        ArrowDown: () => step(1, 0),
        Escape: () => close(),
        "+": () => zoomBy(ZOOM_STEP),
        "=": () => zoomBy(ZOOM_STEP),
        "-": () => zoomBy(1 / ZOOM_STEP),
        0: () => zoomTo(1),
        c: () => view.table.length > 1 && compare("first"),
        b: () => view.table.length > 1 && compare("before"),
        p: () => pin(),
        w: () => showWords(),
        l: () => view.words.toggleLora(),
    };
    document.addEventListener("keydown", (event) => {
        if (!view || event.ctrlKey || event.metaKey || event.altKey) return;
        if (event.key === "Tab") return keepFocus(event);
        const isSliding = event.target.matches && event.target.matches(".lt-view-slider") && event.key.startsWith("Arrow");
        const work = KEYS[event.key] || KEYS[event.key.toLowerCase()];
        event.stopPropagation(); // the page behind must not react
        if (isSliding || !work) return;
        work();
        event.preventDefault();
    }, true);

    /** Tab goes round inside the view. */
    function keepFocus(event) {
        const stops = [...box().querySelectorAll("button, input")].filter((one) => one.offsetParent);
        const at = stops.indexOf(document.activeElement);
        const next = stops[(at + (event.shiftKey ? -1 : 1) + stops.length) % stops.length];
        event.preventDefault();
        event.stopPropagation();
        next.focus();
    }

    // --- mouse and touch --------------------------------------------------------------------------
    function addGestures(stage) {
        const fromMiddle = (event) => {
            const { left, top, width, height } = stage.getBoundingClientRect();
            return [event.clientX - left - width / 2, event.clientY - top - height / 2];
        };
        stage.addEventListener("wheel", (event) => {
            zoomBy(event.deltaY < 0 ? ZOOM_STEP : 1 / ZOOM_STEP, ...fromMiddle(event));
            event.preventDefault();
        }, { passive: false });
        stage.addEventListener("dblclick", (event) => (view.zoom > 1 ? zoomTo(1) : zoomTo(3, ...fromMiddle(event))));
        let drag = null;
        stage.addEventListener("pointerdown", (event) => {
            const slides = view.zoom === 1 && otherCell();
            if (view.zoom === 1 && !slides) return;
            drag = { x: event.clientX - view.x, y: event.clientY - view.y, slides };
            stage.setPointerCapture(event.pointerId);
            event.preventDefault();
        });
        stage.addEventListener("pointermove", (event) => {
            if (!drag) return;
            const { left, width } = stage.getBoundingClientRect();
            if (drag.slides) view.share = Math.max(0, Math.min(100, (event.clientX - left) / width * 100));
            else Object.assign(view, { x: event.clientX - drag.x, y: event.clientY - drag.y });
            place();
        });
        for (const name of ["pointerup", "pointercancel"]) stage.addEventListener(name, () => (drag = null));
    }
})();
