/* Tag completion: a short list below the text box, with tags of the folder and of the list of the user. The server
   does the search. */
(() => {
    "use strict";
    const lt = (window.loraTrain = window.loraTrain || {});
    const make = (...all) => lt.make(...all);
    const TYPING_MS = 120;
    const MIN_LETTERS = 2;
    const STORAGE_KEY = "lora-train-tag-list"; // path of the list
    const brief = (count) => (count >= 1e6 ? `${(count / 1e6).toFixed(1)}M` : count >= 1e4 ? `${Math.round(count / 1e3)}k` : String(count));

    let list = "";
    try {
        list = localStorage.getItem(STORAGE_KEY) || "";
    } catch { /* storage is disabled */ }

    /** Where the tag under the cursor begins, and what has been typed of it. */
    function begun(input) {
        const before = input.value.slice(0, input.selectionStart);
        const start = before.length - before.split(lt.COMMAS_AND_LINES).pop().length;
        const typed = before.slice(start).trimStart();
        return { typed, from: input.selectionStart - typed.length };
    }

    /** Add completion to a text box; `container` is a positioned element for the list. */
    lt.addCompletion = (input, container) => {
        let shown = [];
        let chosen = 0;
        let hasMoved = false;
        let requestNumber = 0;
        let timer = null;
        let popup = null;
        input.setAttribute("autocomplete", "off");

        function close() {
            requestNumber += 1;
            clearTimeout(timer);
            shown = [];
            if (popup) popup.remove();
            popup = null;
        }

        async function complete() {
            const { typed } = begun(input);
            if (typed.length < MIN_LETTERS || document.activeElement !== input) return close();
            const number = (requestNumber += 1);
            const answer = await lt.request("complete-tag", { typed, list, folder: container.captionFolder || "" }).catch(() => null);
            if (number !== requestNumber || !answer) return undefined;
            shown = answer.found;
            chosen = 0;
            hasMoved = false;
            return draw();
        }

        function draw() {
            if (popup) popup.remove();
            popup = null;
            if (!shown.length) return;
            popup = make("div", { className: "lt-complete", role: "listbox" }, ...shown.map((one, n) => {
                const row = make("button", { type: "button", className: `lt-hit ${n === chosen ? "lt-chosen" : ""}`, role: "option", "aria-selected": String(n === chosen), tabIndex: -1,
                    title: one.own ? "Tag of this folder" : "Tag of your list" },
                    make("b", {}, one.tag), make("span", {}, one.alias ? `← ${one.alias}` : ""), make("i", {}, brief(one.count)));
                row.onmousedown = (event) => {
                    event.preventDefault(); // the box keeps the focus
                    accept(n);
                };
                return row;
            }));
            const box = input.getBoundingClientRect();
            const around = container.getBoundingClientRect();
            popup.style.left = `${Math.max(0, Math.min(box.left - around.left, around.width - 260))}px`;
            popup.style.top = `${box.bottom - around.top + 2}px`;
            container.append(popup);
        }

        function accept(n) {
            const { typed, from } = begun(input);
            input.setRangeText(shown[n].tag, from, from + typed.length, "end");
            close();
            input.dispatchEvent(new Event("input", { bubbles: true }));
        }

        input.addEventListener("input", (event) => {
            clearTimeout(timer);
            if (event.isTrusted) timer = setTimeout(complete, TYPING_MS);
        });
        input.addEventListener("blur", close);
        // Capture phase: an open list handles these keys before the text box does.
        input.addEventListener("keydown", (event) => {
            if (!shown.length || event.altKey || event.ctrlKey || event.metaKey) return;
            const step = { ArrowDown: 1, ArrowUp: -1 }[event.key];
            if (step) {
                chosen = (chosen + step + shown.length) % shown.length;
                hasMoved = true;
                draw();
            } else if (event.key === "Tab" || (event.key === "Enter" && hasMoved)) accept(chosen);
            else if (event.key === "Escape") close();
            else return;
            event.preventDefault();
            event.stopImmediatePropagation();
        }, true);
    };

    /** The text box for the path of the list, with a message on its contents. */
    lt.tagListPath = () => list;

    lt.tagListBox = (container) => {
        const title = "A CSV file of tags (tag, category, count, aliases), such as danbooru.csv of tag completion extensions. Its tags are suggested while you type, after those of the folder. A file such as tag_implications.csv beside it (tag, implied tag) is used for advice.";
        const input = make("input", { type: "text", value: list, placeholder: "/path/to/danbooru.csv", spellcheck: false, title });
        const message = make("span", { className: "lt-c-list-message lt-faint", role: "status" });
        async function loadList() {
            list = input.value.trim();
            try {
                localStorage.setItem(STORAGE_KEY, list);
            } catch { /* storage is disabled */ }
            message.textContent = list ? "Reading…" : "";
            const answer = await lt.request("tag-list", { list }).catch((problem) => ({ message: problem.message, isBad: true }));
            message.textContent = answer.message;
            message.classList.toggle("lt-bad", Boolean(answer.isBad));
        }
        input.addEventListener("change", loadList);
        container.addEventListener("lt-words", () => list && !message.textContent && loadList());
        return make("label", { className: "lt-line lt-field lt-c-list", title }, make("span", {}, "Tag list for completion"), input, message);
    };
})();
