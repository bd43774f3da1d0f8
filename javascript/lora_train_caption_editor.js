/* The editor of one caption in the Captions panel. What is typed stays on the page until the server has saved it. */
(() => {
    "use strict";
    const lt = (window.loraTrain = window.loraTrain || {});
    const make = (...all) => lt.make(...all);

    /** `panel.drafts` are the typed captions that are not on disk: being saved, or refused with a `message`. */
    lt.captionEditor = (panel) => {
        const keyOf = (one) => `${one.folder}\n${one.image}`;
        const shownImages = () => (panel.shown ? panel.shown.images : []);
        const at = () => shownImages().findIndex((one) => one.image === panel.edited);
        const areaOf = () => panel.part("editor").querySelector("textarea");
        const emptyEditor = () => make("p", { className: "lt-faint" }, "Click an image to edit its caption.");

        /** Update the editor: bulk edits, Undo and taggers change the caption too. */
        function follow() {
            const area = areaOf();
            const position = at();
            if (area && area !== document.activeElement) {
                if (position < 0) clear();
                else if (area.value !== textOf(shownImages()[position])) edit(position, false);
            }
            drawUnsaved();
        }
        function clear() {
            panel.part("editor").replaceChildren(emptyEditor());
            drawUnsaved();
        }
        const draftOf = (one) => panel.drafts.get(keyOf({ folder: panel.folder, image: one.image }));
        const textOf = (one) => (draftOf(one) || one).text;

        function edit(position, isFocused = true) {
            const one = shownImages()[position];
            if (!one) return;
            panel.edited = one.image;
            const { folder } = panel;
            const area = make("textarea", { value: textOf(one), rows: 5, title: "Saved when you leave the box. Alt + arrow key: previous or next image.", "aria-label": "Caption", spellcheck: false });
            area.draftKey = keyOf({ folder, image: one.image });
            area.onblur = () => save(one, folder, area.value);
            area.onkeydown = (event) => {
                const step = { ArrowRight: 1, ArrowDown: 1, ArrowLeft: -1, ArrowUp: -1 }[event.key];
                if (event.altKey && step) {
                    event.preventDefault();
                    area.blur();
                    walk(step);
                }
            };
            const large = make("button", { type: "button", className: "lt-thumb", title: "Enlarge" }, make("img", { src: lt.url(`thumbnail/${one.token}`), alt: one.name }));
            large.onclick = () => lt.enlarge([[{ token: one.token, title: one.name, text: area.value, caption: area.value, hasHeatMaps: true }]], 0, 0);
            const maps = lt.heatMapButton({ token: one.token, title: one.name, get caption() { return area.value; } });
            const guessed = one.certain ? null : make("p", { className: "lt-faint" }, "This file is not UTF-8, and this is only how it probably reads. Check the text before you change it, or choose the encoding with Check images in the Dataset panel.");
            panel.part("editor").replaceChildren(large, make("div", { className: "lt-line" },
                make("div", { className: "lt-bar-row" }, make("b", {}, one.name), make("span", { className: "lt-faint" }, "Tab completes a tag"), maps), area, guessed, make("div", { className: "lt-c-refused" })));
            lt.addCompletion(area, panel.container);
            if (isFocused) area.focus({ preventScroll: true });
            panel.container.querySelectorAll(".lt-c-gallery figure").forEach((made, n) => made.classList.toggle("lt-chosen", n === position));
            drawUnsaved();
        }

        function walk(step) {
            const next = at() + step;
            if (shownImages()[next]) edit(next);
            else if (step > 0 && panel.shown.page + 1 < panel.shown.pages) panel.show(panel.shown.page + 1).then(() => edit(0));
            else if (step < 0 && panel.shown.page) panel.show(panel.shown.page - 1).then(() => edit(shownImages().length - 1));
        }

        // --- saving -----------------------------------------------------------------------------------
        let saving = Promise.resolve();

        function save(one, folder, text) {
            const key = keyOf({ folder, image: one.image });
            const refused = panel.drafts.get(key);
            if (refused && refused.message) refused.text = text; // the user decides with the buttons
            else if (refused || text.trim() !== one.text) start({ folder, image: one.image, name: one.name, text, one });
        }
        function start(draft) {
            Object.assign(draft, { message: "", found: null });
            panel.drafts.set(keyOf(draft), draft);
            drawUnsaved();
            saving = saving.then(() => send(draft)); // one after the other: each has seen what the one before has saved
        }

        async function send(draft) {
            const { folder, image, text, one } = draft;
            const answer = await lt.request("captions-save", { folder, image, text, seen: one.seen }).catch((problem) => refuse(draft, problem));
            if (!answer) return;
            if (panel.drafts.get(keyOf(draft)) === draft) panel.drafts.delete(keyOf(draft));
            const same = panel.folder === folder ? shownImages().filter((other) => other.image === image) : [];
            [one, ...same].forEach((each) => Object.assign(each, { text: answer.text, seen: answer.seen, tokens: answer.tokens, certain: true }));
            panel.notify(`${draft.name} saved.`);
            if (panel.folder === folder) {
                Object.assign(panel.shown, { undo: answer.undo, record: answer.record });
                panel.edits.drawUndo();
                panel.refreshSoon();
            }
            drawUnsaved();
        }
        async function refuse(draft, problem) {
            const { folder, image } = draft;
            draft.message = problem.message;
            draft.found = await lt.request("captions-read", { folder, image }).catch(() => null);
            panel.notify(`${draft.name} was not saved.`, true);
            if (panel.drafts.get(keyOf(draft)) === draft) drawUnsaved();
        }

        /** The choice between a refused caption and the file's, below the text box, or in a list if it is not open. */
        function refusedBox(draft, area) {
            const mine = lt.captionButton("Save mine", "mine", "Write what you typed. Undo restores the file's caption.", () => {
                if (area) draft.text = area.value;
                if (draft.found) draft.one.seen = draft.found.seen;
                start(draft);
            });
            const theirs = lt.captionButton("Use the file's", "theirs", "Discard what you typed, and show the caption that is in the file.", async () => {
                await panel.show();
                panel.drafts.delete(keyOf(draft));
                if (area && at() >= 0) edit(at(), false);
                else follow();
            });
            return make("div", { className: "lt-c-unsaved-one" }, make("p", { className: "lt-bad", role: "alert" }, draft.message),
                area ? null : make("p", {}, make("b", {}, `${draft.image} in ${draft.folder}: `), draft.text),
                draft.found ? make("p", { className: "lt-faint" }, `The file's: ${draft.found.text || "no caption"}`) : null,
                make("div", { className: "lt-tool" }, mine, theirs));
        }
        function drawUnsaved() {
            const area = areaOf();
            const refused = [...panel.drafts.values()].filter((draft) => draft.message);
            const isOpen = (draft) => Boolean(area) && area.draftKey === keyOf(draft);
            if (area) panel.part("refused").replaceChildren(...refused.filter(isOpen).map((draft) => refusedBox(draft, area)));
            panel.part("unsaved").replaceChildren(...refused.filter((draft) => !isOpen(draft)).map((draft) => refusedBox(draft, null)));
        }

        /** Wait for what is being saved; whether anything was. */
        async function settle() {
            const before = panel.drafts.size > 0;
            await saving;
            return before;
        }

        return { edit, follow, clear, settle, emptyEditor };
    };
})();
