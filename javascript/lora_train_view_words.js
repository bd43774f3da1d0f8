/* The words of an enlarged image: where the chosen ones act, laid over it and over the image that it is compared with. */
(() => {
    "use strict";
    const lt = (window.loraTrain = window.loraTrain || {});
    const make = (...all) => lt.make(...all);
    const opened = new Map(); // image and caption → {words, lora, …}
    const imageOf = (cell) => ({ token: cell.token, as_it_is: true, ...("caption" in cell ? { text: cell.caption } : {}) });
    const isShort = (word) => word.length <= 3; // an article or the like is not chosen by itself

    /** The bar below an enlarged image. `layers` are the two images for the maps: of the cell, and of the other one. */
    lt.viewWords = (layers) => {
        const chips = make("span", { className: "lt-view-chips", role: "group", "aria-label": "Words of the prompt" });
        const withLora = make("button", { type: "button", className: "lt-view-tool lt-view-lora", title: "Look at the image with the LoRA that it was drawn with, or without (L)" }, "With LoRA");
        const line = make("span", { className: "lt-view-line", role: "status", title: "The largest share of a location's attention that goes to these words. The map itself is always drawn at full strength." });
        const bar = make("div", { className: "lt-view-words", hidden: true }, chips, withLora, line);
        const state = { isOn: false, chosen: null, isWithLora: true, cells: [], found: [], drawn: 0, isBusy: false };

        const say = (text, isError = false) => {
            line.textContent = text;
            line.classList.toggle("lt-heat-bad", isError);
        };
        const valuesOf = (cell, found) => ({ ...imageOf(cell), ...(state.isWithLora || !found.lora ? {} : { file: "" }) });

        async function read(cell) {
            const key = `${cell.token}\n${cell.caption || ""}`;
            if (!opened.has(key)) opened.set(key, await lt.request("heatmap-open", imageOf(cell)));
            return opened.get(key);
        }

        function drawBar({ words }) {
            const chip = (word) => {
                const button = make("button", { type: "button", className: "lt-view-tool lt-heat-word", title: `Show or hide where “${word}” acts` }, word);
                button.onclick = () => {
                    if (!state.chosen.delete(word)) state.chosen.add(word);
                    update();
                };
                return button;
            };
            if ([...chips.children].map((one) => one.textContent).join("\n") !== words.join("\n")) chips.replaceChildren(...words.map(chip));
            for (const one of chips.children) one.setAttribute("aria-pressed", String(state.chosen.has(one.textContent)));
            withLora.hidden = !state.found.some((one) => one && one.lora);
            withLora.setAttribute("aria-pressed", String(state.isWithLora));
        }

        /** The percentage of a layer, as in the list of heat maps. */
        const peakOf = (map) => `at most ${(100 * map.peak).toFixed(1)}%`;

        /** Show the maps of the chosen words, first of the cell, then of the other one; the newest call wins. */
        async function update() {
            const mine = (state.drawn += 1);
            const isWanted = () => state.drawn === mine && bar.isConnected;
            for (const layer of layers) layer.hidden = true;
            if (!state.isOn || !state.cells[0]) return;
            try {
                state.found = await Promise.all(state.cells.map((cell) => cell && read(cell)));
                if (!isWanted()) return;
                const { words } = state.found[0];
                state.chosen = state.chosen || (words.length ? new Set([words.find((word) => !isShort(word)) || words[0]]) : null);
                drawBar(state.found[0]);
                say(!words.length ? "This image has no prompt or caption." : words.some((word) => state.chosen.has(word)) ? "" : "Choose a word of this prompt.", !words.length);
                const peaks = [];
                for (const [place, cell] of state.cells.entries()) {
                    const map = cell && await mapOf(cell, state.found[place], isWanted);
                    if (!isWanted()) return;
                    if (!map) continue;
                    Object.assign(layers[place], { src: map.layer, alt: `Heat map of ${map.word}`, hidden: false });
                    peaks.unshift(peakOf(map));
                    say(peaks.join(" | "));
                }
            } catch (problem) {
                if (isWanted()) say(problem.message, true);
            } finally {
                if (state.drawn === mine) state.isBusy = false;
            }
        }

        /** The map of the chosen words that are in the image's prompt, null if none is. */
        async function mapOf(cell, found, isWanted) {
            const texts = found.words.filter((word) => state.chosen.has(word));
            if (!texts.length) return null;
            state.isBusy = true;
            const maps = await lt.heatMaps(valuesOf(cell, found), { texts, joined: true }, { isWanted, say });
            return maps && maps.maps[0];
        }

        withLora.onclick = () => {
            state.isWithLora = !state.isWithLora;
            update();
        };
        return Object.assign(bar, {
            /** Show the words of these cells: the current one, and the one that it is compared with or null. */
            follow: (...cells) => {
                const usable = cells.map((cell) => (cell && cell.hasHeatMaps ? cell : null));
                const isSame = usable.every((cell, place) => (cell && cell.token) === (state.cells[place] && state.cells[place].token));
                state.cells = usable;
                bar.hidden = !state.isOn || !usable[0];
                if (!isSame) update();
            },
            toggle: () => {
                if (!state.cells[0]) return;
                state.isOn = !state.isOn;
                bar.hidden = !state.isOn;
                update();
            },
            stop: () => state.isBusy && lt.request("heatmap-stop").catch(() => null),
            toggleLora: () => state.isOn && !withLora.hidden && withLora.onclick(),
            isOn: () => state.isOn,
        });
    };
})();
