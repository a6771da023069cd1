"""What PEFT's common tests ask of a method for `Linear` and `Conv1D`: what holds for SVF, what does not, and why."""

# behaviour → the test in test_peft.py
HOLDS = {
    "The model saves, loads and can be pushed; its parameters name the adapter": "test_it_is_a_peft_model",
    "The caller's configuration object is the model's, also when loading": "test_the_configuration_is_the_callers",
    "Saved and loaded, as safetensors or pickle, it gives the same outputs": "test_saved_and_loaded",
    "Several adapters are saved and loaded, also selected ones, and names within names": "test_several_are_saved",
    "`low_cpu_mem_usage` loads the same values; injection can leave them on meta": "test_low_memory_loading",
    "`inject_adapter_in_model` with `get_` and `set_peft_model_state_dict`": "test_injected_into_a_bare_model",
    "Merged, merged twice, merged safely and unloaded, it gives the same outputs": "test_merging",
    "Unmerging gives the base weights back to the bit": "test_unmerging",
    "Merging works in float16 and bfloat16, and refuses NaN": "test_merging_in_half_precision_and_with_nan",
    "Several active adapters act, and merge at once or one after the other": "test_several_active_adapters",
    "Deleting an adapter: active, inactive, unknown, merged": "test_deleting",
    "Training changes the adapter and `modules_to_save` alone": "test_training_changes_the_adapter_alone",
    "A disabled adapter gives the base model; contexts nest and restore what was": "test_disabling",
    "Which parameters are trained follows `set_adapter`, `set_requires_grad`, `inference_mode`": "test_what_is_trained",
    "float16 and bfloat16 models run, with autocast and without": "test_half_precision",
    "Layers show `in_features`, `out_features`, `weight` and `bias`": "test_attributes_of_layers",
    "The base model's state dictionary comes out and goes in under its own names": "test_state_of_the_base_model",
    "Model and layer status": "test_status",
    "Copies and pickles of the model give the same outputs": "test_copies",
    "The model card and `adapter_config.json` name base model and library": "test_the_card",
    "Gradient checkpointing gives the same gradients": "test_gradient_checkpointing",
    "Generation, also with positional input, uses the adapter": "test_generation",
    "Token classification, sequence classification and question answering train their heads": "test_heads",
    "`add_weighted_adapter`": "test_weighted_adapters",
    "Conversion to LoRA": "test_conversion_to_lora",
    "`adapter_names` chooses an adapter for each row of a batch": "test_each_row_has_its_own_adapter",
    "`torch.compile` gives the same outputs": "test_compiled",
    "Quantised base models (bitsandbytes, torchao, quanto) keep their kernels": "test_quantised_base",
}

# behaviour → why, with the test that shows what happens
DOES_NOT_HOLD = {
    "With `autocast_adapter_dtype=False` adapters have the model's type": (
        "`z` stays float32: bfloat16 has steps of 1/128 around 1, more than `z` moves in training.",
        "test_z_is_fp32_in_any_case",
    ),
    "Embeddings, convolutions and `MultiheadAttention` are targets": (
        "Refused by name: they have no matrix that one product applies, or read it without calling the layer.",
        "test_other_layers_are_refused",
    ),
    "An adapter loads onto any weights of its shapes": (
        "`z` belongs to the singular values of one matrix: other weights refuse it, unless they differ by rounding.",
        "test_other_weights_are_refused",
    ),
    "Quantised layers without the weights from before, and merging into quantised ones": (
        "Refused by name: the factors are of the unquantised checkpoint, and merging goes into it.",
        "test_quantised_layers_are_refused",
    ),
}

NO_MEANING = {
    "`r`, `lora_alpha`, scaling, `rank_pattern`, `alpha_pattern`, dropout": "SVF has one value a singular value.",
    "`bias`, `lora_bias`": "SVF has `biases`, which train one beside the base model's.",
    "DoRA, rsLoRA, LoftQ, aLoRA and other variants; hot swapping; layer replication": "They are LoRA's.",
    "`target_parameters`, `trainable_token_indices`": "Other weights than those of layers; use `modules_to_save`.",
    "Prompt learning, virtual tokens, `PeftMixedModel`": "Other kinds of methods.",
    "`path_initial_model_for_weight_conversion`": "SVF does not change the base weights.",
}
