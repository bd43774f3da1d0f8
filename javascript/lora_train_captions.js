/* The Captions panel: a paged gallery with filters, a tag list, an editor for one caption and edits for many. Everything
   is asked from the server a page at a time; nothing here grows with the dataset. What the parts share is `panel`; they
   are in the files lora_train_caption_*.js. */
(() => {
    "use strict";
    const lt = (window.loraTrain = window.loraTrain || {});
    const make = (...all) => lt.make(...all);
    const TYPING_MS = 350;
    const COUNTING_MS = 1500;

    /** `shown` is the server's last answer, one page; `edited` the number of the caption in the editor. */
    const panel = {
        place: null,
        shown: null,
        edited: null,
        selected: new Set(),
        filter: { all_of: "", any_of: "", none_of: "", text: "", untagged: false, fewest: "", most: "" },
    };
    const part = (panel.part = (name) => panel.place.querySelector(`.lt-c-${name}`));

    /** `work`, done once a little after the last call. */
    panel.later = (work) => {
        let timer = null;
        return () => {
            clearTimeout(timer);
            timer = setTimeout(work, TYPING_MS);
        };
    };

    // --- asking -----------------------------------------------------------------------------------
    const tell = (text, isBad = false) => {
        const line = part("told");
        line.textContent = text;
        line.className = `lt-c-told ${isBad ? "lt-bad" : "lt-faint"}`;
    };
    const asked = (name, values) => lt.ask(`captions-${name}`, values).catch((problem) => {
        tell(problem.message, true);
        return null;
    });

    async function open() {
        const answer = await asked("open", { folder: part("folder").value });
        if (!answer) return;
        panel.selected.clear();
        panel.edited = null;
        await takeWords();
        take(answer);
        tell("");
    }

    async function show(page = panel.shown ? panel.shown.page : 0) {
        if (!panel.shown) return;
        const answer = await asked("show", { filter: panel.filter, page });
        if (answer) take(answer);
    }

    function take(answer) {
        panel.shown = answer;
        panel.gallery.draw();
        panel.filters.draw();
        panel.edits.drawUndo();
        panel.edits.changed();
        panel.place.dispatchEvent(new CustomEvent("lt-shown"));
        if (answer.images.some((one) => one.tokens === null)) setTimeout(() => panel.shown === answer && show(), COUNTING_MS);
    }

    /** The trigger and the class word of the chosen folder are what the edits begin with. */
    async function takeWords() {
        const chosen = (panel.place.folders || []).find((one) => one.folder === part("folder").value);
        panel.place.words = chosen || { trigger: "", class_word: "" };
        panel.edits.start();
        panel.place.dispatchEvent(new CustomEvent("lt-words"));
    }

    async function offerFolders() {
        const answer = await asked("folders", {});
        if (!answer) return;
        panel.place.folders = answer.folders;
        const list = part("folders");
        list.replaceChildren(...answer.folders.map((one) => make("option", { value: one.folder })));
        const box = part("folder");
        if (!box.value && answer.folders.length) box.value = answer.folders[0].folder;
    }

    /** Which captions are meant, for the server. */
    panel.scoped = (scope) => ({ scope, selected: [...panel.selected], filter: panel.filter, page: panel.shown ? panel.shown.page : 0 });
    Object.assign(panel, { tell, asked, show, take, showSoon: panel.later(() => show(0)) });

    // --- the place --------------------------------------------------------------------------------
    lt.captionBox = (name, placeholder = "") => make("input", { type: "text", className: `lt-c-${name}`, placeholder, spellcheck: false });
    lt.captionButton = (label, name, title, work, isSmall = true) => {
        const made = make("button", { type: "button", className: `${isSmall ? "lt-small " : ""}lt-c-${name}`, title }, label);
        made.onclick = work;
        return made;
    };

    function folded(title, name, start, ...before) {
        const made = make("details", { className: "lt-card lt-skipped", title: "Measured when it is unfolded" }, make("summary", {}, title), ...before, make("div", { className: `lt-c-${name}` }));
        made.ontoggle = () => made.open && panel.shown && start();
        return made;
    }

    function build() {
        panel.place.edits = JSON.parse(panel.place.dataset.edits);
        panel.gallery = lt.captionGallery(panel);
        panel.filters = lt.captionFilters(panel);
        panel.edits = lt.captionEdits(panel);
        const advice = lt.captionAdvice(panel);
        const folder = make("input", { type: "text", className: "lt-c-folder", placeholder: "/path/to/images", title: "The folder whose captions are shown; those of the Dataset panel are offered", "aria-label": "Folder" });
        folder.setAttribute("list", "lora_train_caption_folders");
        folder.onkeydown = (event) => event.key === "Enter" && open();
        const tryBox = lt.captionBox("try", "words to try, separated by commas");
        tryBox.title = "Words to try as triggers: how many tokens each is, and which tokens two of them share";
        tryBox.onchange = advice.measureWords;
        const body = make("div", { className: "lt-captions" },
            make("div", { className: "lt-card lt-c-top" },
                make("div", { className: "lt-tool lt-c-order" }, folder, make("datalist", { id: "lora_train_caption_folders", className: "lt-c-folders" }),
                    lt.captionButton("Open", "open", "Read the captions of this folder and its N_words sub-folders.", open)),
                make("p", { className: "lt-c-told lt-faint", role: "status" }, "The folders of the Dataset panel are offered here.")),
            make("div", { className: "lt-c-columns" }, panel.filters.card(),
                make("div", {}, panel.edits.card(), lt.taggingCard({ place: panel.place, shown: () => panel.shown, order: panel.scoped, refresh: () => show() }),
                    make("div", { className: "lt-card lt-c-editor-card" }, make("div", { className: "lt-c-editor" }, panel.gallery.nobody())),
                    make("div", { className: "lt-card" },
                        make("div", { className: "lt-bar-row" }, make("h3", { className: "lt-heading" }, "Images", make("span", { className: "lt-c-count" })),
                            lt.captionButton("Select page", "page", "Select every image of this page", () => {
                                panel.shown.images.forEach((one) => panel.selected.add(one.number));
                                panel.gallery.draw();
                                panel.edits.changed();
                            }),
                            lt.captionButton("Select none", "none", "Forget the selection", () => {
                                panel.selected.clear();
                                panel.gallery.draw();
                                panel.edits.changed();
                            }),
                            make("nav", { className: "lt-pager lt-c-pager" })),
                        make("div", { className: "lt-gallery lt-c-gallery" })),
                    folded("Advice: tags that steal from the trigger, contradictions, lengths", "advice", advice.advise),
                    folded("Tokens: lengths, triggers, rare words", "words", advice.measureWords, make("div", { className: "lt-tool" }, tryBox)))));
        body.addEventListener("input", (event) => event.stopPropagation()); // nothing here belongs to the form
        panel.place.replaceChildren(body);
        panel.place.dataset.ltOwn = "yes";
        panel.edits.start();
        if (!panel.shown) return;
        folder.value = panel.shown.folder; // some gradio versions build a panel anew when it is opened again
        take(panel.shown);
    }

    lt.drawCaptions = (given) => {
        panel.place = given;
        if (panel.place.firstChild) {
            if (panel.place.offsetParent !== null && !panel.place.isOffered) {
                panel.place.isOffered = true;
                offerFolders();
            }
            if (panel.place.offsetParent === null) panel.place.isOffered = false;
            panel.place.classList.toggle("lt-c-open", Boolean(panel.shown));
            return;
        }
        build();
    };
})();
