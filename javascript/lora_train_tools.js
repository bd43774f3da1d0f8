/* The Tools panel: check, convert, resize, extract and merge LoRA files, edit their metadata, and convert checkpoints. */
(() => {
    "use strict";
    const lt = (window.loraTrain = window.loraTrain || {});
    const make = (...all) => lt.make(...all);
    const POLL_MS = 700;

    const field = (label, input, title) => {
        input.title = title;
        return make("label", { className: "lt-line lt-field", title }, make("span", {}, label), input);
    };
    const box = (value, placeholder) => make("input", { type: "text", value, placeholder, spellcheck: false });

    /** A button that shows that it is working, and puts its result into `output`. */
    function action(label, title, output, work) {
        const button = make("button", { type: "button", className: "lt-small", title }, label);
        button.onclick = async () => {
            button.disabled = true;
            button.textContent = "Working…";
            const parts = await work().catch((problem) => [line("error", "Error", problem.message)]);
            output.replaceChildren(...parts);
            button.disabled = false;
            button.textContent = label;
        };
        return button;
    }
    const line = (level, name, text) => make("ul", { className: "lt-problems" },
        make("li", { className: `lt-${level}` }, make("i", {}, name), make("p", {}, text)));
    const warningLines = (answer) => [...answer.warnings.map((text) => line("warning", "Warning", text)),
        ...answer.left_out.map((name) => line("warning", "Left out", name))];
    const lostIn = (answer) => `${(100 * answer.error).toFixed(2)}% of the update was lost`;
    const good = (text) => make("p", { className: "lt-verdict lt-good" }, text);

    const RANKS = [
        ["", "the same rank in every layer", ""],
        ["sv_fro", "by layer: this share of its Frobenius norm", "0.9"],
        ["sv_cumulative", "by layer: this share of its singular values", "0.8"],
        ["sv_ratio", "by layer: values above 1/X of the largest", "5"],
    ];

    /** The fields of a rule for ranks: `elements`, and `values()` for a request. */
    function rankFields(usual, ...more) {
        const rule = make("select", {}, ...RANKS.map(([value, text]) => make("option", { value }, text)));
        const [threshold, rank, convRank] = [box("", ""), box(usual, "empty: no limit"), box("", "empty: as Rank")];
        const limit = field("Share or X", threshold, "0.9 keeps 90% of what the rule counts; for values above 1/X, X");
        rule.onchange = () => {
            limit.hidden = !rule.value;
            threshold.value = RANKS.find(([value]) => value === rule.value)[2];
            rank.value = rule.value ? "" : usual;
        };
        limit.hidden = true;
        return {
            elements: [field("Ranks", rule, "One rank, or the rank that each layer needs"),
                make("div", { className: "lt-card-fields" }, limit,
                    field("Rank", rank, "The rank, or the highest that a layer may get"),
                    field("Conv rank", convRank, "The same for kernels larger than 1×1"), ...more)],
            values: () => ({ rule: rule.value, threshold: threshold.value, rank: rank.value, conv_rank: convRank.value }),
        };
    }

    /** The card that writes the file in `file` with another rank. */
    function resizeCard(file, name, nameIn) {
        const ranks = rankFields("8", name);
        const output = make("div", { className: "lt-t-message" });
        const resize = action("Resize", "Write a new file beside this one, and measure what was lost", output, async () => {
            const answer = await lt.request("tools-resize", { file: file.value, ...ranks.values(), name: nameIn(name) });
            return [good(`Saved: ${answer.path} (${answer.megabytes.toFixed(1)} MB), ${answer.ranks}. ${lostIn(answer)}, most in ${answer.worst}.`), ...warningLines(answer)];
        });
        return make("div", { className: "lt-card" }, make("h3", { className: "lt-heading" }, "Resize it", make("span", {}, "a lower rank, without a checkpoint")),
            ...ranks.elements, make("div", { className: "lt-adders" }, resize), output);
    }

    /** A button that starts a task of the server, such as `extract`; `output` shows its progress and what was `written`. */
    function inBackground(label, title, task, output, request, written) {
        const failed = (problem) => output.replaceChildren(line("error", "Error", problem.message));
        const follow = (status) => {
            button.disabled = status.state === "busy";
            if (status.state === "busy") {
                const stop = lt.smallButton("Stop", "Stop; nothing is written", () => lt.request(`${task}-stop`).catch(lt.notify));
                output.replaceChildren(make("p", { role: "status" }, status.line), make("div", { className: "lt-adders" }, stop));
                setTimeout(() => output.isConnected && lt.request(`${task}-status`).then(follow).catch(() => follow(status)), POLL_MS);
            } else if (status.state === "failed") failed(status);
            else output.replaceChildren(...(status.result ? written(status.result) : status.state === "stopped" ? [make("p", {}, "Stopped. Nothing was written.")] : []));
        };
        const button = lt.smallButton(label, title, () => lt.request(`${task}-start`, request()).then(follow).catch(failed));
        lt.request(`${task}-status`).then((status) => status.state === "busy" && follow(status)).catch(() => {});
        return button;
    }

    const LAYERS = [
        ["all", "all, with convolutions (LoCon)"],
        ["standard", "attention and feed-forward (LoRA)"],
        ["attention", "attention only"],
        ["full", "all, also the first and last convolution"],
    ];

    /** The card that writes the difference of two checkpoints as a LoRA, in the background. */
    function extractCard(name, nameIn) {
        const [base, tuned, clamp] = [box("", "/path/to/base.safetensors"), box("", "/path/to/fine-tuned.safetensors"), box("1", "1: none")];
        const layers = make("select", {}, ...LAYERS.map(([value, text]) => make("option", { value }, text)));
        const text = make("input", { type: "checkbox", checked: true });
        const pick = (input) => lt.picker("checkpoint", () => input.value, (path) => (input.value = path));
        const ranks = rankFields("16", field("Text encoder", text, "Take the change of the text encoders, too"),
            field("Clamp quantile", clamp, "Cuts the largest values, as sd-scripts does with 0.99; 1 cuts none and loses less"), name);
        const output = make("div", { className: "lt-t-message" });
        const written = (found) => [good(`Saved: ${found.path} (${found.megabytes.toFixed(1)} MB), ${lt.count(found.layers, "layer")}, ${found.ranks}.`),
            make("p", {}, `${(100 * found.error).toFixed(2)}% of the change in these layers was lost, most in ${found.worst}. ${(100 * found.outside).toFixed(2)}% of the whole change is outside of them.`),
            ...warningLines(found)];
        const request = () => ({
            checkpoint: base.value, tuned: tuned.value, ...ranks.values(), targets: layers.value, text_encoder: text.checked, clamp: clamp.value, name: nameIn(name),
        });
        const extract = inBackground("Extract", "Write a new LoRA into the LoRA folder, and measure what it does not hold", "extract", output, request, written);
        return make("div", { className: "lt-card" }, make("h3", { className: "lt-heading" }, "Extract a LoRA", make("span", {}, "what a fine-tuned checkpoint has learnt")),
            field("Base", base, "The checkpoint that the other one was trained from"), pick(base),
            field("Fine-tuned", tuned, "The checkpoint whose difference from the base becomes a LoRA"), pick(tuned),
            field("Layers", layers, "What the LoRA holds; the rest of the change is measured"),
            ...ranks.elements, make("div", { className: "lt-adders" }, extract), output);
    }

    const PRECISIONS = [["", "as it is"], ["fp16", "fp16: half the size"], ["bf16", "bf16: half the size, coarser"], ["fp32", "fp32"]];
    const EMA = [["drop", "left out"], ["use", "used as the UNet"], ["keep", "kept"]];

    /** The card that writes a checkpoint again, in the background. */
    function checkpointCard(name, nameIn) {
        const [file, vae] = [box("", "/path/to/model.ckpt"), box("", "empty: its own")];
        const [precision, ema] = [PRECISIONS, EMA].map((list) => make("select", {}, ...list.map(([value, text]) => make("option", { value }, text))));
        const output = make("div", { className: "lt-t-message" });
        const written = (found) => [good(`Saved: ${found.path} (${found.megabytes.toFixed(1)} MB).`), ...found.notes.map((text) => make("p", {}, text))];
        const request = () => ({ file: file.value, precision: precision.value, vae: vae.value, ema: ema.value, name: nameIn(name) });
        const convert = inBackground("Convert", "Write a new .safetensors file beside this one", "convert-checkpoint", output, request, written);
        return make("div", { className: "lt-card" }, make("h3", { className: "lt-heading" }, "Convert a checkpoint", make("span", {}, ".ckpt to .safetensors, smaller, with another VAE")),
            field("File", file, "A checkpoint or VAE: .safetensors, .ckpt or .pt; it is not changed"), lt.picker("checkpoint", () => file.value, (path) => (file.value = path)),
            make("div", { className: "lt-card-fields" },
                field("Precision", precision, "Of the weights; webuis load fp16 by default"),
                field("VAE", vae, "A VAE file that replaces the VAE in the checkpoint"),
                field("EMA weights", ema, "A second copy of the UNet that some training files hold"), name),
            make("div", { className: "lt-adders" }, convert), output);
    }

    const TEXTS = [
        ["title", "Title", "The name that programs show"], ["trigger", "Trigger words", "What prompts need, separated by commas"],
        ["author", "Author", "Who made it"], ["license", "Licence", "Such as CC-BY-4.0, or a web address"], ["description", "Description", "What it is for"],
    ];

    /** The card that shows the metadata of the file in `file`, and writes a copy with other ones. */
    function metadataCard(file, name, nameIn) {
        const inputs = Object.fromEntries(TEXTS.map(([key]) => [key, box("", "")]));
        const image = box("", "/path/to/preview.png");
        let shownFile = "";
        const strip = make("input", { type: "checkbox", checked: true });
        const [found, written] = [make("div", { className: "lt-t-message" }), make("div", { className: "lt-t-message" })];
        const show = action("Show", "Read the file's metadata, and fill in the fields", found, async () => {
            const answer = await lt.request("tools-metadata", { file: file.value });
            shownFile = file.value;
            for (const [key] of TEXTS) inputs[key].value = answer.fields[key];
            return [make("pre", { className: "lt-t-facts" }, answer.facts.join("\n") || "There are none.")];
        });
        const write = action("Write", "Write a new file beside this one with what the fields say", written, async () => {
            const entries = Object.fromEntries(TEXTS.map(([key]) => [key, inputs[key].value.trim()]));
            if (shownFile && shownFile !== file.value) throw new Error("The fields are those of another file. Press Show first.");
            const shown = shownFile ? entries : Object.fromEntries(Object.entries(entries).filter(([, text]) => text)); // fields that were never filled in remove nothing
            const answer = await lt.request("tools-metadata-write", { file: file.value, entries: shown, strip: strip.checked, image: image.value.trim(), name: nameIn(name) });
            return [good(`Saved: ${answer.path}.`)];
        });
        return make("div", { className: "lt-card" }, make("h3", { className: "lt-heading" }, "Its metadata", make("span", {}, "shown, and written into a new file")),
            make("div", { className: "lt-adders" }, show), found,
            make("div", { className: "lt-card-fields" }, ...TEXTS.map(([key, label, title]) => field(label, inputs[key], title)),
                field("Preview", image, "An image that becomes the file's thumbnail; empty: as it is"),
                field("Strip paths", strip, "Reduce paths to file names, which also takes out the user names in them"), name),
            make("div", { className: "lt-adders" }, write), written);
    }

    /** The fields of a way to merge: `elements`, and `values()` for a request. */
    function methodFields(to) {
        const methods = lt.pageData().merge_methods;
        const purposeOf = ({ purpose }) => `${purpose[0].toUpperCase()}${purpose.slice(1)}.`;
        const method = make("select", {}, ...Object.entries(methods).map(([value, { title }]) => make("option", { value }, title)));
        const purpose = make("p", { className: "lt-faint" }, purposeOf(methods[method.value]));
        const [density, seed] = [box("0.5", "0.5"), box("0", "0")];
        const more = make("div", { className: "lt-card-fields", hidden: true },
            field("Density", density, "The share of each file's values that is kept; 0.3 to 0.7 is usual"),
            field("Seed", seed, "Of the values that DARE and DELLA drop"));
        method.onchange = () => {
            purpose.textContent = purposeOf(methods[method.value]);
            more.hidden = method.value === "sum";
            if (!more.hidden && to.value === "lora") to.value = "rank";
        };
        return {
            elements: [field("How", method, "What is done where the files change the same weights"), purpose, more],
            values: () => ({ method: method.value, density: density.value, seed: seed.value }),
        };
    }

    function build(container) {
        const file = box("", "/path/to/lora.safetensors");
        const pick = lt.picker("lora", () => file.value, (path) => (file.value = path));
        const checkpoint = box("", "empty: loaded checkpoint");
        const rank = box("16", "16");
        const kind = make("select", {}, make("option", { value: "lora" }, "LoRA of this rank"), make("option", { value: "diff" }, "exact difference (large)"));
        const name = () => field("Name", box("", "empty: made from the names of the files"), "Name of the new file, and of the LoRA in prompts; existing files are not overwritten");
        const [convertedName, resizedName, mergedName, extractedName, checkpointName, editedName] = Array.from({ length: 6 }, name);
        const nameIn = (label) => label.querySelector("input").value.trim();
        const [found, written] = [make("div", { className: "lt-t-message" }), make("div", { className: "lt-t-message" })];

        const check = action("Check", "Family, ranks, norms, errors, and the model it is for", found, async () => {
            const answer = await lt.request("tools-check", { file: file.value });
            const verdict = answer.problems.length ? [] : [good("No problems found.")];
            return [make("pre", { className: "lt-t-facts" }, answer.facts.join("\n")), ...verdict,
                ...answer.problems.map((text) => line(answer.broken ? "error" : "warning", answer.broken ? "Error" : "Warning", text))];
        });
        const convert = action("Convert", "Write a new file beside this one, and measure what was lost", written, async () => {
            const answer = await lt.request("tools-convert", { file: file.value, checkpoint: checkpoint.value, rank: rank.value, to: kind.value, name: nameIn(convertedName) });
            const lost = `${lostIn(answer)}${kind.value === "lora" ? `, most in ${answer.worst}` : ""}.`;
            return [good(`Saved: ${answer.path} (${answer.megabytes.toFixed(1)} MB). ${lost}`),
                ...warningLines(answer)];
        });
        const several = make("textarea", { rows: 3, spellcheck: false, placeholder: "/path/to/a.safetensors: 1\n/path/to/b.safetensors: 0.5" });
        const add = lt.picker("lora", () => "", (path) => (several.value = `${several.value.trim()}\n${path}: 1`.trim()));
        const how = make("select", {}, ...[["lora", "one LoRA, exact (plain LoRAs only)"], ["rank", "LoRA of this rank"], ["diff", "exact difference (large)"],
            ["checkpoint", "new checkpoint with the LoRAs merged in"]].map(([value, text]) => make("option", { value }, text)));
        const way = methodFields(how);
        const sum = make("div", { className: "lt-t-message" });
        const merge = action("Merge", "Write a new file; existing files are not changed", sum, async () => {
            const answer = await lt.request("tools-merge", { files: several.value, checkpoint: checkpoint.value, rank: rank.value, to: how.value, ...way.values(), name: nameIn(mergedName) });
            const lost = how.value === "checkpoint" ? "" : ` ${lostIn(answer)}.`;
            const moved = answer.change ? ` Before that, the plain sum was changed by ${(100 * answer.change).toFixed(2)}%.` : "";
            return [good(`Saved: ${answer.path} (${answer.megabytes.toFixed(1)} MB).${lost}${moved}`),
                ...warningLines(answer)];
        });
        const body = make("div", { className: "lt-tools" },
            make("div", { className: "lt-card" }, make("h3", { className: "lt-heading" }, "Check a LoRA", make("span", {}, "any family, any trainer")),
                field("File", file, "A .safetensors file; it is not changed"), pick, make("div", { className: "lt-adders" }, check), found),
            make("div", { className: "lt-card" }, make("h3", { className: "lt-heading" }, "Convert it", make("span", {}, "to a file that every webui reads")),
                make("div", { className: "lt-card-fields" },
                    field("Checkpoint", checkpoint, "The model it is for; some families depend on its weights"),
                    field("Write", kind, "A LoRA is small but loses a little; the difference is exact but large"),
                    field("Rank", rank, "Higher ranks lose less"), convertedName),
                make("div", { className: "lt-adders" }, convert), written),
            resizeCard(file, resizedName, nameIn),
            make("div", { className: "lt-card" }, make("h3", { className: "lt-heading" }, "Merge several", make("span", {}, "with the checkpoint and rank of Convert")),
                field("Files", several, "One file per line, followed by a colon and its weight; families may differ. After another colon: block weights, such as 1,0,0,0,1,1,1,1,1,1,1,1"), add,
                ...way.elements,
                field("Write", how, "Plain LoRAs add up to one exact LoRA; other families need a rank, the difference or a checkpoint"),
                mergedName,
                make("div", { className: "lt-adders" }, merge), sum),
            extractCard(extractedName, nameIn),
            metadataCard(file, editedName, nameIn),
            checkpointCard(checkpointName, nameIn));
        body.addEventListener("input", (event) => event.stopPropagation()); // not part of the form
        container.replaceChildren(body);
    }

    /** Buttons that convert a file to one that every webui reads, and report the measured loss in `output`. */
    const CONVERSIONS = {
        diff: ["Convert to diff", "Write the exact difference beside it, which every webui reads; large"],
        lora: ["Convert to LoRA", "Write a LoRA of rank 16 beside it, which every webui reads, and measure what was lost"],
    };
    lt.convertButtons = (path, output, kinds) => kinds.map((to) => action(...CONVERSIONS[to], output, async () => {
        const answer = await lt.request("tools-convert", { file: path, to, rank: "16" });
        return [good(`Saved: ${answer.path} (${answer.megabytes.toFixed(1)} MB). ${lostIn(answer)}.`),
            ...warningLines(answer)];
    }));

    lt.drawTools = (container) => {
        if (!container.firstChild && lt.pageData()) build(container); // which has the ways to merge
    };
})();
