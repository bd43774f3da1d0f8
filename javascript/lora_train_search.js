/* The Train panel's search over all parameters, and the marks at those that differ from the preset. */
(() => {
    "use strict";
    const lt = (window.loraTrain = window.loraTrain || {});
    const make = (...all) => lt.make(...all);
    const MOST = 12;

    const parameters = () => {
        const helps = document.querySelector("[data-lt='helps']");
        return helps ? (helps.helps = helps.helps || JSON.parse(helps.dataset.helps)).parameters : {};
    };

    /** Ids whose names, kohya names or help texts hold all words; hits in names come first. */
    function found(words) {
        const scored = Object.entries(parameters()).map(([id, known]) => {
            const name = `${known.label} ${id.replace("lora_train_", "")} ${known.kohya}`.toLowerCase();
            const all = `${name} ${known.help}`.toLowerCase();
            if (!words.every((word) => all.includes(word))) return [id, 0];
            return [id, words.every((word) => name.includes(word)) ? 2 : 1];
        });
        return scored.filter(([, score]) => score).sort((a, b) => b[1] - a[1]).map(([id]) => id);
    }

    function lines(ids) {
        const known = parameters();
        return ids.slice(0, MOST).map((id) => {
            const button = make("button", { type: "button", className: "lt-hit", title: known[id].help },
                make("b", {}, known[id].label), make("span", {}, known[id].help.split("\n")[0]), make("i", { className: "lt-tag" }, known[id].tier));
            button.onclick = () => lt.showField(id);
            return button;
        });
    }

    function showHits(place) {
        const words = place.querySelector("input").value.toLowerCase().split(/\s+/).filter(Boolean);
        const ids = place.isChanged ? place.changed : words.length ? found(words) : [];
        const more = ids.length > MOST ? [make("p", { className: "lt-faint" }, `and ${ids.length - MOST} more`)] : [];
        const none = words.length && !ids.length ? [make("p", { className: "lt-faint" }, "No parameter of that kind.")] : [];
        place.querySelector(".lt-hits").replaceChildren(...lines(ids), ...more, ...none);
    }

    lt.drawSearch = (place) => {
        if (place.firstChild) return;
        const input = make("input", { type: "search", id: "lora_train_search_input", placeholder: "Search all settings: rank, warm-up, network_dim …", title: "Names, kohya's names and help texts are searched. Enter goes to the first hit.", "aria-label": "Search all settings" });
        input.dataset.ltOwn = "yes";
        input.oninput = () => {
            place.isChanged = false;
            showHits(place);
        };
        input.onkeydown = (event) => {
            const first = place.querySelector(".lt-hit");
            if (event.key === "Enter" && first) first.click();
            if (event.key === "Escape") {
                input.value = "";
                showHits(place);
            }
        };
        const changed = make("button", { type: "button", className: "lt-small", title: "List the settings that differ from the preset; again: hide the list" }, "");
        changed.onclick = () => {
            place.isChanged = !place.isChanged;
            input.value = "";
            showHits(place);
        };
        place.changed = [];
        place.append(make("div", { className: "lt-tool lt-search" }, input, changed), make("div", { className: "lt-hits" }));
    };

    /** A dot at every field that differs, and the count beside the search. */
    lt.markChanged = (mark) => {
        const place = document.querySelector("[data-lt='search']");
        if (!place || !place.firstChild) return;
        place.changed = JSON.parse(mark.dataset.names);
        const { base } = mark.dataset;
        const button = place.querySelector(".lt-search button");
        button.textContent = place.changed.length ? `${place.changed.length} changed from ${base}` : `as ${base}`;
        button.disabled = !place.changed.length;
        const names = new Set(place.changed);
        document.querySelectorAll("#lora_train_root [data-lt-changed]").forEach((field) => {
            if (!names.has(field.id)) delete field.dataset.ltChanged;
        });
        names.forEach((id) => {
            const field = document.getElementById(id);
            if (field) field.dataset.ltChanged = "yes";
        });
        if (place.isChanged) showHits(place);
    };
})();
