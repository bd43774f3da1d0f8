"""What the webui executes at its start: imports the whole package, then registers the tab and its routes.

Everything is imported here and now, because a webui's script path is only valid while its scripts load.
"""

from modules import script_callbacks

from lib_lora_train.ui.unavailable import build_refusal, missing_packages, missing_sentence

missing = missing_packages()
if missing:
    sentence = missing_sentence(missing)
    print(f"[LoRA Train] {sentence}")
    script_callbacks.on_ui_tabs(lambda: [(build_refusal(sentence), "LoRA Train", "lora_train_tab")])
else:
    from lib_lora_train.hosts.webui.options import add_settings
    from lib_lora_train.ui.extension import add_routes, tabs

    script_callbacks.on_ui_tabs(tabs)
    script_callbacks.on_ui_settings(add_settings)
    script_callbacks.on_app_started(add_routes)
