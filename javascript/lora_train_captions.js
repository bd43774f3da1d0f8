/* The Captions panel: a paged gallery with filters, a tag list, an editor for one caption and edits for many. The
   server sends one page at a time, so that nothing here grows with the dataset. The parts in lora_train_caption_*.js
   share the object `panel`. */
(() => {
    "use strict";
    const lt = (window.loraTrain = window.loraTrain || {});
    const make = (...all) => lt.make(...all);
    const TYPING_MS = 350;
    const COUNTING_MS = 1500;

    const EVERYTHING = { all_of: "", any_of: "", none_of: "", text: "", untagged: false, fewest: "", most: "" }; // a filter

    /** `shown` is the current page from the server, `folder` the one that every request names, "" without one; `typed` the
        text in the box of the folder, since some gradio versions rebuild a panel when it is reopened; `edited` the image in
        the editor. Images are named by their path in the folder. */
    const panel = {
        place: null,
        shown: null,
        folder: "",
        typed: "",
        edited: null,
        drafts: new Map(),
        selected: new Set(),
        words: "",
        filter: { ...EVERYTHING },
    };
    const part = (panel.part = (name) => panel.container.querySelector(`.lt-c-${name}`));

    /** A debounced `work`. */
    panel.later = (work) => {
        let timer = null;
        return () => {
            clearTimeout(timer);
            timer = setTimeout(work, TYPING_MS);
        };
    };

    // --- requests ---------------------------------------------------------------------------------
    const notify = (text, isBad = false) => {
        const line = part("message");
        line.textContent = text;
        line.className = `lt-c-message ${isBad ? "lt-bad" : "lt-faint"}`;
    };
    const request = (name, values) => lt.request(`captions-${name}`, { folder: panel.folder, ...values }).catch((problem) => {
        notify(problem.message, true);
        return null;
    });

    let opened = 0;
    async function open() {
        const number = (opened += 1);
        await panel.editor.settle();
        close(); // if the folder cannot be opened, nothing is left that could be edited in another one
        const answer = await request("open", { folder: part("folder").value });
        if (!answer || number !== opened) return;
        setFolder(answer.folder);
        handle(answer);
        loadWords();
        notify("");
    }
    function close() {
        setFolder("");
        panel.shown = null;
        panel.edited = null;
        panel.selected.clear();
        panel.editor.clear();
        panel.edits.close();
        panel.container.classList.remove("lt-c-open");
    }
    function setFolder(folder) {
        panel.folder = folder;
        panel.container.captionFolder = folder; // completes its tags
    }

    async function show(page = panel.shown ? panel.shown.page : 0) {
        if (!panel.shown) return;
        const answer = await request("show", { filter: panel.filter, page });
        if (answer) handle(answer);
    }

    function handle(answer) {
        if (answer.folder !== panel.folder) return; // another one was opened in the meantime
        panel.shown = answer;
        panel.container.classList.add("lt-c-open");
        panel.gallery.draw();
        panel.filters.draw();
        panel.edits.drawUndo();
        panel.edits.changed();
        panel.container.dispatchEvent(new CustomEvent("lt-shown"));
        if (answer.images.some((one) => one.tokens === null)) setTimeout(() => panel.shown === answer && show(), COUNTING_MS);
    }

    /** Bulk edits start with the trigger and class word of the folder. */
    function loadWords() {
        const chosen = (panel.container.folders || []).find((one) => one.folder === part("folder").value);
        panel.container.words = chosen || { trigger: "", class_word: "" };
        panel.edits.start();
        panel.container.dispatchEvent(new CustomEvent("lt-words"));
    }

    async function loadFolders() {
        const answer = await request("folders", {});
        if (!answer) return;
        panel.container.folders = answer.folders;
        const list = part("folders");
        list.replaceChildren(...answer.folders.map((one) => make("option", { value: one.folder })));
        const box = part("folder");
        if (!box.value && !box.matches(":focus") && answer.folders.length) fillFolder(answer.folders[0].folder);
    }

    /** Put a folder into the box. */
    function fillFolder(folder) {
        part("folder").value = panel.typed = folder;
    }

    /** The selected scope, for the server. */
    panel.scoped = (scope) => ({ folder: panel.folder, scope, selected: [...panel.selected], filter: panel.filter, page: panel.shown ? panel.shown.page : 0 });
    Object.assign(panel, { notify, request, show, handle, showSoon: panel.later(() => show(0)), refreshSoon: panel.later(() => show()) });

    // --- layout -----------------------------------------------------------------------------------
    lt.captionBox = (name, placeholder = "") => make("input", { type: "text", className: `lt-c-${name}`, placeholder, spellcheck: false });
    lt.captionButton = (label, name, title, work, isSmall = true) => {
        const made = make("button", { type: "button", className: `${isSmall ? "lt-small " : ""}lt-c-${name}`, title }, label);
        made.onclick = work;
        return made;
    };

    function folded(title, name, start, ...before) {
        const made = make("details", { className: "lt-card lt-skipped", title: "Computed when expanded" }, make("summary", {}, title), ...before, make("div", { className: `lt-c-${name}` }));
        const fill = () => made.open && panel.shown && start();
        made.ontoggle = fill;
        panel.container.addEventListener("lt-words", fill); // another folder was opened
        return made;
    }

    function build() {
        panel.container.edits = JSON.parse(panel.container.dataset.edits);
        panel.gallery = lt.captionGallery(panel);
        panel.editor = lt.captionEditor(panel);
        panel.filters = lt.captionFilters(panel);
        panel.edits = lt.captionEdits(panel);
        const advice = lt.captionAdvice(panel);
        const folder = make("input", { type: "text", className: "lt-c-folder", placeholder: "/path/to/images", title: "The folder with the captions. Folders of the Dataset panel are suggested.", "aria-label": "Folder" });
        folder.setAttribute("list", "lora_train_caption_folders");
        folder.value = panel.typed;
        folder.oninput = () => (panel.typed = folder.value);
        folder.addEventListener("keydown", (event) => event.key === "Enter" && open()); // an onkeydown of false would drop the key
        const body = make("div", { className: "lt-captions" },
            make("div", { className: "lt-card lt-c-top" },
                make("div", { className: "lt-tool lt-c-row" }, folder, make("datalist", { id: "lora_train_caption_folders", className: "lt-c-folders" }),
                    lt.captionButton("Open", "open", "Load the captions of this folder and its N_words sub-folders.", open)),
                make("p", { className: "lt-c-message lt-faint", role: "status" }, "Open a folder to edit its captions."),
                make("div", { className: "lt-c-unsaved" })),
            make("div", { className: "lt-c-columns" }, panel.filters.card(),
                make("div", {}, panel.edits.card(), lt.taggingCard({ container: panel.container, shown: () => panel.shown, scoped: panel.scoped, refresh: () => show() }),
                    make("div", { className: "lt-card lt-c-editor-card" }, make("div", { className: "lt-c-editor" }, panel.editor.emptyEditor())),
                    make("div", { className: "lt-card" },
                        make("div", { className: "lt-bar-row" }, make("h3", { className: "lt-heading" }, "Images", make("span", { className: "lt-c-count" })),
                            lt.captionButton("Select page", "page", "Select all images on this page", () => {
                                panel.shown.images.forEach((one) => panel.selected.add(one.image));
                                panel.gallery.draw();
                                panel.edits.changed();
                            }),
                            lt.captionButton("Select none", "none", "Clear the selection", () => {
                                panel.selected.clear();
                                panel.gallery.draw();
                                panel.edits.changed();
                            }),
                            make("nav", { className: "lt-pager lt-c-pager" })),
                        make("div", { className: "lt-gallery lt-c-gallery" })),
                    folded("Advice: tags that compete with the trigger word, contradictions, lengths", "advice", advice.advise),
                    folded("Tokens: lengths, trigger words, rare words", "words", advice.measureWords, advice.wordsBox()))));
        body.addEventListener("input", (event) => event.stopPropagation()); // not part of the form
        panel.container.replaceChildren(body);
        panel.container.dataset.ltOwn = "yes";
        panel.edits.start();
        if (!panel.shown) return;
        setFolder(panel.shown.folder);
        handle(panel.shown);
    }

    /** Open the Captions panel with an image of a folder in the editor; the filter is its file name. */
    lt.editCaption = async (place, name) => {
        lt.openPanel("Captions");
        const find = () => lt.page().querySelector("[data-lt='captions']");
        for (let tries = 0; !find() && tries < 20; tries += 1) await new Promise((done) => setTimeout(done, 50)); // gradio may build the panel only now
        lt.drawCaptions(find());
        await panel.editor.settle();
        panel.filter = { ...EVERYTHING, text: name };
        build(); // with this filter in its boxes
        fillFolder(place);
        await open();
        await show(0);
        const position = panel.shown ? panel.shown.images.findIndex((one) => one.name === name) : -1;
        if (position >= 0) panel.editor.edit(position);
    };

    lt.drawCaptions = (given) => {
        panel.container = given;
        if (panel.container.firstChild) {
            if (panel.container.offsetParent !== null && !panel.container.hasFolders) {
                panel.container.hasFolders = true;
                loadFolders();
            }
            if (panel.container.offsetParent === null) panel.container.hasFolders = false;
            panel.container.classList.toggle("lt-c-open", Boolean(panel.shown));
            return;
        }
        build();
    };
})();
