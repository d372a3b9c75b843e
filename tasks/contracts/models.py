"""GET /v1/models: the name that clients choose the model by."""

from __future__ import annotations

from tasks.contracts.promises import Context, at, expect, promise


@promise(
    "models.names_alias",
    "/v1/models lists the served alias as a model id",
    "OpenAI API `GET /v1/models`; guide 05: list available models to verify a deployment",
    must=True,
)
def names_alias(ctx: Context) -> str:
    answer = ctx.client.get("/v1/models")
    expect(answer.status == 200, f"/v1/models answered {answer.status}")
    ids = [at(model, "id") for model in at(answer.body, "data")]
    expect(ctx.release.alias in ids, f"/v1/models lists {ids}, not {ctx.release.alias!r}")
    return f"lists {ctx.release.alias!r}"
