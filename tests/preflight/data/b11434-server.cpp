        ctx_http.del ("/models",               ex_wrapper(models_routes->del_router_models));
    ctx_http.get ("/health",                   ex_wrapper(routes.get_health)); // public endpoint (no API key check)
    ctx_http.get ("/v1/models",                ex_wrapper(routes.get_models));
    ctx_http.post("/v1/chat/completions",      ex_wrapper(routes.post_chat_completions));
    ctx_http.post("/v1/systemone",             ex_wrapper(routes.post_systemone));
    ctx_http.post("/slots/:id_slot",           ex_wrapper(routes.post_slots));
        ctx_http.get ("/tools",           ex_wrapper(res_403));
    add((new field_num("n_predict", params.n_predict))
        ->set_hard_limits(-1, INT32_MAX)
        ->add_alias("max_completion_tokens")
        ->add_alias("max_tokens")
        ->set_desc("Set the maximum number of tokens to predict. When 0, no tokens will be generated but the prompt is evaluated into the cache"));
    // TODO: implement t_max_prompt_ms
    // add((new field_num("t_max_prompt_ms", params.t_max_prompt_ms))
    add((new field_num("speculative.ngram_min_hits", params.speculative.ngram_simple.min_hits))
    auto json_schema = json_value(body, "json_schema", json());
    if (body.contains("messages") && body.at("grammar").is_null()) {
    const std::string key = "reasoning_budget_tokens";
