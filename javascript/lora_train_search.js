/* The search of the Train panel, and marks at settings that differ from the preset. */
(() => {
    "use strict";
    const lt = (window.loraTrain = window.loraTrain || {});
    const make = (...all) => lt.make(...all);
    const MAX_RESULTS = 12;

    const parameters = () => (lt.pageData() || { parameters: {} }).parameters;

    /** Ids whose names, kohya names or help texts contain all words; matches in names come first. */
    function found(words) {
        const scored = Object.entries(parameters()).map(([id, known]) => {
            const name = `${known.label} ${id.replace("lora_train_", "")} ${known.kohya}`.toLowerCase();
            const all = `${name} ${known.help}`.toLowerCase();
            if (!words.every((word) => all.includes(word))) return [id, 0];
            return [id, words.every((word) => name.includes(word)) ? 2 : 1];
        });
        return scored.filter(([, score]) => score).sort((a, b) => b[1] - a[1]).map(([id]) => id);
    }

    /** A button for each setting; `changed`: id → [value before, value now], shown in place of the help. */
    function lines(ids, changed) {
        const known = parameters();
        return ids.map((id) => {
            const about = changed ? `${changed[id][1]} instead of ${changed[id][0]}` : known[id].help.split("\n")[0];
            const button = make("button", { type: "button", className: "lt-hit", title: known[id].help },
                make("b", {}, known[id].label), make("span", {}, about), make("i", { className: "lt-tag" }, known[id].tier));
            button.onclick = () => lt.showField(id);
            return button;
        });
    }

    function showHits(container) {
        const words = container.querySelector("input").value.toLowerCase().split(/\s+/).filter(Boolean);
        const hits = container.querySelector(".lt-hits");
        if (container.isChanged) return hits.replaceChildren(...lines(Object.keys(container.changed), container.changed));
        const ids = words.length ? found(words) : [];
        const more = ids.length > MAX_RESULTS ? [make("p", { className: "lt-faint" }, `and ${ids.length - MAX_RESULTS} more`)] : [];
        const none = words.length && !ids.length ? [make("p", { className: "lt-faint" }, "No matching settings.")] : [];
        return hits.replaceChildren(...lines(ids.slice(0, MAX_RESULTS)), ...more, ...none);
    }

    lt.drawSearch = (container) => {
        if (container.firstChild) return;
        const input = make("input", { type: "search", id: "lora_train_search_input", placeholder: "Search all settings: rank, warm-up, network_dim …", title: "Searches names, kohya names and help texts. Press Enter to go to the first result.", "aria-label": "Search all settings" });
        input.dataset.ltOwn = "yes";
        input.oninput = () => {
            container.isChanged = false;
            showHits(container);
        };
        input.onkeydown = (event) => {
            const first = container.querySelector(".lt-hit");
            if (event.key === "Enter" && first) first.click();
            if (event.key === "Escape") {
                input.value = "";
                showHits(container);
            }
        };
        const changed = make("button", { type: "button", className: "lt-small", title: "Show or hide the settings that differ from the preset" }, "");
        changed.onclick = () => {
            container.isChanged = !container.isChanged;
            input.value = "";
            showHits(container);
        };
        container.changed = {};
        container.append(make("div", { className: "lt-tool lt-search" }, input, changed), make("div", { className: "lt-hits" }));
    };

    /** Mark the fields that differ with a dot, and count them beside the search. */
    lt.markChanged = (mark) => {
        const container = document.querySelector("[data-lt='search']");
        if (!container || !container.firstChild) return;
        container.changed = JSON.parse(mark.dataset.values);
        const names = new Set(Object.keys(container.changed));
        const { base } = mark.dataset;
        const button = container.querySelector(".lt-search button");
        button.textContent = names.size ? `${names.size} changed from ${base}` : `same as ${base}`;
        button.disabled = !names.size;
        document.querySelectorAll("#lora_train_root [data-lt-changed]").forEach((field) => {
            if (!names.has(field.id)) delete field.dataset.ltChanged;
        });
        names.forEach((id) => {
            const field = document.getElementById(id);
            if (field) field.dataset.ltChanged = "yes";
        });
        if (container.isChanged) showHits(container);
    };
})();
