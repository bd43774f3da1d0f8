/* Images: the dataset with its captions, samples by epoch and prompt, and the grid. */
(() => {
    "use strict";
    const lt = (window.loraTrain = window.loraTrain || {});
    const make = (...all) => lt.make(...all);
    const thumbnail = (token) => lt.url(`thumbnail/${token}`);
    const image = (token) => lt.url(`image/${token}`);

    // --- samples ----------------------------------------------------------------------------------
    /** A table of samples: a column per prompt, control prompts last, a row per epoch or step. */
    function sheetOf(run) {
        const columns = [];
        const control = [];
        const rows = new Map();
        for (const event of run.events) {
            if (event.kind !== "SampleDrawn") continue;
            const key = `${event.prompt}\n${event.seed}`;
            const group = event.is_control ? control : columns;
            if (!group.includes(key)) group.push(key);
            const moment = `${event.epoch}/${event.step || 0}`;
            if (!rows.has(moment)) rows.set(moment, { epoch: event.epoch, step: event.step || 0, drawn: new Map() });
            rows.get(moment).drawn.set(key, event);
        }
        // Within an epoch, steps come before its end.
        const places = [...columns, ...control];
        const order = [...rows.values()].sort((a, b) => a.epoch - b.epoch || (a.step || Infinity) - (b.step || Infinity));
        const nameOf = (row) => (row.step ? `Step ${row.step}` : row.epoch ? `Epoch ${row.epoch}` : "No LoRA");
        return {
            prompts: places.map((key) => key.split("\n")[0]),
            concept: columns.length,
            control: control.length,
            rows: order.map(nameOf),
            table: order.map((row) => places.map((key) => {
                const event = row.drawn.get(key);
                return event ? { token: event.token, title: nameOf(row), text: `${event.prompt} · seed ${event.seed}`, hasHeatMaps: true } : null;
            })),
        };
    }

    lt.drawSamples = (container, run) => {
        const drawn = run.events.filter((event) => event.kind === "SampleDrawn").length;
        const config = (run.status && run.status.config) || {};
        const wants = Boolean((config.sample_prompts || []).length || config.sample_every_n_epochs || config.sample_every_n_steps);
        const mark = `${run.id}/${drawn}/${wants}`;
        if (container.dataset.mark === mark) return;
        container.dataset.mark = mark;
        if (!drawn) {
            const reason = wants ? "The first samples are drawn without the LoRA, before training starts." : "This run draws no samples.";
            container.replaceChildren(make("div", { className: "lt-empty" }, make("span", {}, reason)));
            return;
        }
        container.replaceChildren(lt.sheetTable(sheetOf(run)));
    };

    /** The newest samples that are nearly copies, each beside its training image; nothing if there are none. */
    lt.copiesOf = (events) => {
        const copies = events.filter((event) => event.kind === "SampleMatched" && event.is_copy);
        if (!copies.length) return make("div", {});
        const last = Math.max(...copies.map((event) => event.epoch));
        const shown = copies.filter((event) => event.epoch === last);
        const table = shown.map((event) => [
            { token: event.token, title: `Sample of epoch ${event.epoch}`, text: lt.fileName(event.sample), hasHeatMaps: true },
            { token: event.image_token, title: "Training image", text: lt.fileName(event.image), hasHeatMaps: true }]);
        const pairs = table.map((pair, row) => make("figure", { className: "lt-image-pair" }, ...pair.map((one, column) => {
            const button = make("button", { type: "button", className: "lt-thumb", title: `${one.title}: ${one.text}. Enlarge` }, make("img", { src: thumbnail(one.token), alt: one.title, loading: "lazy" }));
            button.onclick = () => lt.enlarge(table, row, column);
            return button;
        }), make("figcaption", {}, `similarity ${shown[row].similarity.toFixed(2)}`)));
        return make("div", { className: "lt-copies" },
            make("b", {}, `${lt.count(copies.length, "sample is nearly a copy", "samples are nearly copies")} of a training image`),
            make("p", { className: "lt-faint" }, `Left a sample of epoch ${last}, right the image. Look for duplicates, add varied images or use an earlier epoch.`),
            make("div", { className: "lt-pairs" }, ...pairs));
    };

    lt.drawGrid = (container, run) => {
        const grid = run.old || run.events.filter((event) => event.kind === "GridDrawn").pop();
        if (!grid || container.dataset.mark === `${run.id}/${grid.token}/${grid.time}`) return;
        container.dataset.mark = `${run.id}/${grid.token}/${grid.time}`;
        const button = make("button", { type: "button", className: "lt-grid", title: "Enlarge" },
            make("img", { src: `${image(grid.token)}?${grid.time}`, alt: "Grid of epochs and prompts" }));
        button.onclick = () => lt.enlarge([[{ token: grid.token, title: "Grid", text: grid.path }]], 0, 0);
        container.replaceChildren(button);
    };

    // --- the dataset -----------------------------------------------------------------------------
    /** Fetch the first page of images after every scan. */
    lt.drawDataset = (container) => {
        const scanned = document.querySelector("[data-lt-scan]");
        const number = scanned ? scanned.dataset.ltScan : "";
        if (!container.acceptsDrop && lt.acceptDrop) {
            container.acceptsDrop = true;
            lt.acceptDrop(container, lt.firstFolder, () => lt.press("scan"));
        }
        if (container.dataset.number === number) return;
        container.dataset.number = number;
        if (number) showPage(container, 0);
        else container.replaceChildren();
    };

    async function showPage(container, page) {
        const response = await fetch(lt.url(`images?page=${page}`), { cache: "no-store" }).catch(() => null);
        if (!response || !response.ok) {
            container.dataset.number = "";
            return;
        }
        const answer = await response.json();
        const table = [answer.images.map((one) => ({ token: one.token, title: one.name, text: one.caption, hasHeatMaps: true }))];
        const cards = answer.images.map((one, column) => {
            const shape = `${one.width} × ${one.height} · ${lt.count(one.repeats, "repeat")}`;
            const button = make("button", { type: "button", className: "lt-thumb", title: `${one.name}\n${shape}` },
                make("img", { src: thumbnail(one.token), alt: one.caption, loading: "lazy" }));
            button.onclick = () => lt.enlarge(table, 0, column);
            const crop = make("button", { type: "button", className: "lt-small lt-k-open", title: `Crop ${one.name}: see what training cuts off, and choose the frame` }, "Crop");
            crop.onclick = () => lt.crop(container, one.token);
            return make("figure", {}, button, crop,
                one.is_regularisation ? make("i", { className: "lt-tag" }, "regularisation") : null,
                make("figcaption", { title: one.caption },
                    one.caption || make("i", { className: "lt-faint" }, "no caption")));
        });
        const open = [...container.querySelectorAll(".lt-crop")];
        container.replaceChildren(...open, make("div", { className: "lt-card" },
            make("div", { className: "lt-bar-row" },
                make("h3", { className: "lt-heading" }, "Images and captions", make("span", {}, `${answer.total.toLocaleString("en-US")} in total`)),
                answer.pages > 1 ? pager(container, answer) : null),
            make("div", { className: "lt-gallery" }, ...cards)));
        lt.refreshCrop(container);
    }

    function pager(container, { page, pages }) {
        const turn = (label, name, to) => {
            const button = make("button", { type: "button", className: "lt-small", disabled: to < 0 || to >= pages, "aria-label": name }, label);
            button.onclick = () => showPage(container, to);
            return button;
        };
        return make("nav", { className: "lt-pager" }, turn("‹", "Previous page", page - 1), make("span", {}, `${page + 1} / ${pages}`), turn("›", "Next page", page + 1));
    }
})();
