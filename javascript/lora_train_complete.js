/* Completing tags while they are typed: a short list under the box, from the folder's own tags and the user's list.
   The server searches; the page shows eight at most. */
(() => {
    "use strict";
    const lt = (window.loraTrain = window.loraTrain || {});
    const make = (...all) => lt.make(...all);
    const TYPING_MS = 120;
    const FEWEST = 2;
    const KEPT = "lora-train-tag-list"; // the list's path, in this browser
    const brief = (count) => (count >= 1e6 ? `${(count / 1e6).toFixed(1)}M` : count >= 1e4 ? `${Math.round(count / 1e3)}k` : String(count));

    let list = "";
    try {
        list = localStorage.getItem(KEPT) || "";
    } catch { /* a browser that keeps nothing asks again */ }

    /** Where the tag under the cursor begins, and what is typed of it. */
    function begun(input) {
        const before = input.value.slice(0, input.selectionStart);
        const start = Math.max(before.lastIndexOf(","), before.lastIndexOf("\n")) + 1;
        const typed = before.slice(start).trimStart();
        return { typed, from: input.selectionStart - typed.length };
    }

    /** Let a box of tags offer completions; `place` is positioned and holds the list. */
    lt.completes = (input, place) => {
        let shown = [];
        let chosen = 0;
        let isWalked = false;
        let asked = 0;
        let timer = null;
        let popup = null;
        input.setAttribute("autocomplete", "off");

        function close() {
            asked += 1;
            clearTimeout(timer);
            shown = [];
            if (popup) popup.remove();
            popup = null;
        }

        async function ask() {
            const { typed } = begun(input);
            if (typed.length < FEWEST || document.activeElement !== input) return close();
            const number = (asked += 1);
            const answer = await lt.ask("completing", { typed, list }).catch(() => null);
            if (number !== asked || !answer) return undefined;
            shown = answer.found;
            chosen = 0;
            isWalked = false;
            return draw();
        }

        function draw() {
            if (popup) popup.remove();
            popup = null;
            if (!shown.length) return;
            popup = make("div", { className: "lt-complete", role: "listbox" }, ...shown.map((one, n) => {
                const row = make("button", { type: "button", className: `lt-hit ${n === chosen ? "lt-chosen" : ""}`, role: "option", "aria-selected": String(n === chosen), tabIndex: -1,
                    title: one.own ? "A tag of this folder" : "A tag of your list" },
                    make("b", {}, one.tag), make("span", {}, one.alias ? `← ${one.alias}` : ""), make("i", {}, brief(one.count)));
                row.onmousedown = (event) => {
                    event.preventDefault(); // the box keeps the focus
                    accept(n);
                };
                return row;
            }));
            const box = input.getBoundingClientRect();
            const around = place.getBoundingClientRect();
            popup.style.left = `${Math.max(0, Math.min(box.left - around.left, around.width - 260))}px`;
            popup.style.top = `${box.bottom - around.top + 2}px`;
            place.append(popup);
        }

        function accept(n) {
            const { typed, from } = begun(input);
            input.setRangeText(shown[n].tag, from, from + typed.length, "end");
            close();
            input.dispatchEvent(new Event("input", { bubbles: true }));
        }

        input.addEventListener("input", (event) => {
            clearTimeout(timer);
            if (event.isTrusted) timer = setTimeout(ask, TYPING_MS);
        });
        input.addEventListener("blur", close);
        // Before the box's own keys: while the list is open they are meant for it.
        input.addEventListener("keydown", (event) => {
            if (!shown.length || event.altKey || event.ctrlKey || event.metaKey) return;
            const step = { ArrowDown: 1, ArrowUp: -1 }[event.key];
            if (step) {
                chosen = (chosen + step + shown.length) % shown.length;
                isWalked = true;
                draw();
            } else if (event.key === "Tab" || (event.key === "Enter" && isWalked)) accept(chosen);
            else if (event.key === "Escape") close();
            else return;
            event.preventDefault();
            event.stopImmediatePropagation();
        }, true);
    };

    /** The box that names the user's list, and says what is in it. */
    lt.tagListBox = (place) => {
        const title = "A CSV of known tags, such as the danbooru.csv of tag-completion extensions: tag, category, count, aliases. Its tags are offered while you type, after those of the folder.";
        const input = make("input", { type: "text", value: list, placeholder: "/path/to/danbooru.csv", spellcheck: false, title });
        const told = make("span", { className: "lt-c-list-told lt-faint", role: "status" });
        async function use() {
            list = input.value.trim();
            try {
                localStorage.setItem(KEPT, list);
            } catch { /* asked again the next time */ }
            told.textContent = list ? "Reading…" : "";
            const answer = await lt.ask("completing-list", { list }).catch((problem) => ({ told: problem.message, isBad: true }));
            told.textContent = answer.told;
            told.classList.toggle("lt-bad", Boolean(answer.isBad));
        }
        input.addEventListener("change", use);
        place.addEventListener("lt-words", () => list && !told.textContent && use());
        return make("label", { className: "lt-line lt-field lt-c-list", title }, make("span", {}, "Tag list for completion"), input, told);
    };
})();
