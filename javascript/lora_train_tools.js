/* The Tools panel: what is in a LoRA file, and the same file in another kind. */
(() => {
    "use strict";
    const lt = (window.loraTrain = window.loraTrain || {});
    const make = (...all) => lt.make(...all);

    const field = (label, input, title) => {
        input.title = title;
        return make("label", { className: "lt-line lt-field", title }, make("span", {}, label), input);
    };
    const box = (value, placeholder) => make("input", { type: "text", value, placeholder, spellcheck: false });

    /** A button that says that it works, and puts what came of it into `told`. */
    function action(label, title, told, work) {
        const button = make("button", { type: "button", className: "lt-small", title }, label);
        button.onclick = async () => {
            button.disabled = true;
            button.textContent = "MasterWeights…";
            const parts = await work().catch((problem) => [line("error", "Error", problem.message)]);
            told.replaceChildren(...parts);
            button.disabled = false;
            button.textContent = label;
        };
        return button;
    }
    const line = (level, name, text) => make("ul", { className: "lt-problems" },
        make("li", { className: `lt-${level}` }, make("i", {}, name), make("p", {}, text)));
    const remarks = (answer) => [...answer.warnings.map((text) => line("warning", "Warning", text)),
        ...answer.left_out.map((name) => line("warning", "Left out", name))];
    const lostIn = (answer) => `${(100 * answer.error).toFixed(2)} % of the update was lost`;
    const good = (text) => make("p", { className: "lt-verdict lt-good" }, text);

    function build(place) {
        const file = box("", "/path/to/lora.safetensors");
        const checkpoint = box("", "empty: the one that is loaded");
        const rank = box("16", "16");
        const kind = make("select", {}, make("option", { value: "lora" }, "a LoRA of this rank"), make("option", { value: "diff" }, "the exact difference (large)"));
        const [found, written] = [make("div", { className: "lt-t-told" }), make("div", { className: "lt-t-told" })];

        const check = action("Check", "Families, ranks, norms, faults, and which models it is for", found, async () => {
            const answer = await lt.ask("tools-check", { file: file.value });
            const verdict = answer.problems.length ? [] : [good("Nothing stands against using it.")];
            return [make("pre", { className: "lt-t-facts" }, answer.facts.join("\n")), ...verdict,
                ...answer.problems.map((text) => line(answer.broken ? "error" : "warning", answer.broken ? "Error" : "Warning", text))];
        });
        const convert = action("Convert", "Writes a new file beside this one; how much was lost is measured", written, async () => {
            const answer = await lt.ask("tools-convert", { file: file.value, checkpoint: checkpoint.value, rank: rank.value, to: kind.value });
            const lost = `${lostIn(answer)}${kind.value === "lora" ? `, most in ${answer.worst}` : ""}.`;
            return [good(`Written: ${answer.path} (${answer.megabytes.toFixed(1)} MB). ${lost}`),
                ...remarks(answer)];
        });
        const several = make("textarea", { rows: 3, spellcheck: false, placeholder: "/path/to/a.safetensors: 1\n/path/to/b.safetensors: 0.5" });
        const how = make("select", {}, ...[["lora", "one LoRA, exact (plain LoRAs)"], ["rank", "a LoRA of this rank"], ["diff", "the exact difference (large)"],
            ["checkpoint", "a new checkpoint with them in it"]].map(([value, text]) => make("option", { value }, text)));
        const sum = make("div", { className: "lt-t-told" });
        const merge = action("Merge", "Writes a new file; nothing that is there is changed", sum, async () => {
            const answer = await lt.ask("tools-merge", { files: several.value, checkpoint: checkpoint.value, rank: rank.value, to: how.value });
            const lost = how.value === "checkpoint" ? "" : ` ${lostIn(answer)}.`;
            return [good(`Written: ${answer.path} (${answer.megabytes.toFixed(1)} MB).${lost}`),
                ...remarks(answer)];
        });
        const body = make("div", { className: "lt-tools" },
            make("div", { className: "lt-card" }, make("h3", { className: "lt-heading" }, "Check a LoRA", make("span", {}, "of any family, from any trainer")),
                field("File", file, "A .safetensors file; nothing is changed"), make("div", { className: "lt-adders" }, check), found),
            make("div", { className: "lt-card" }, make("h3", { className: "lt-heading" }, "Convert it", make("span", {}, "to what every webui reads")),
                make("div", { className: "lt-card-fields" },
                    field("Checkpoint", checkpoint, "The model it is for: what some families do depends on its weights"),
                    field("Write", kind, "A LoRA is small and loses a little; the difference is exact and large"),
                    field("Rank", rank, "A higher rank loses less")),
                make("div", { className: "lt-adders" }, convert), written),
            make("div", { className: "lt-card" }, make("h3", { className: "lt-heading" }, "Merge several", make("span", {}, "with the checkpoint and rank of Convert")),
                field("Files", several, "One file a line, with its weight behind a colon; families may differ"),
                field("Write", how, "The sum of plain LoRAs is a LoRA of all their ranks; other families need a rank, the difference or the checkpoint"),
                make("div", { className: "lt-adders" }, merge), sum));
        body.addEventListener("input", (event) => event.stopPropagation()); // nothing here belongs to the form
        place.replaceChildren(body);
    }

    /** Writes a file of a run in a form that every webui reads, and tells the measured loss in `told`. */
    lt.convertButtons = (path, told) => [
        ["lora", "Write as LoRA", "A LoRA of rank 16 beside it, which every webui reads; what is lost is measured"],
        ["diff", "Write as diff", "The exact difference beside it, which every webui reads: large"],
    ].map(([to, label, title]) => action(label, title, told, async () => {
        const answer = await lt.ask("tools-convert", { file: path, to, rank: "16" });
        return [good(`Written: ${answer.path} (${answer.megabytes.toFixed(1)} MB). ${lostIn(answer)}.`),
            ...remarks(answer)];
    }));

    lt.drawTools = (place) => {
        if (!place.firstChild) build(place);
    };
})();
