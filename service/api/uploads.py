"""``POST /v1/uploads``: an image is handed in, for a job that looks at it alone."""

from fastapi import Depends, Request
from starlette.concurrency import run_in_threadpool

from service import problems, uploads
from service.api.answers import Answer, example_of
from service.api.asking import KNOWN_PARAMETERS
from service.api.routing import Routes
from service.auth import Scope, requires

router = Routes(prefix="/v1/uploads", tags=["jobs"], dependencies=[KNOWN_PARAMETERS])


class UploadAnswer(Answer):
    """An image that was handed in."""

    model_config = example_of(uri="/data/runs/.uploads/9f86d081884c7d65", width=640, height=480)

    uri: str
    """``data.uri`` of a job that looks at it."""
    width: int
    height: int


@router.post(
    "",
    status_code=201,
    dependencies=[Depends(requires(Scope.submit))],
    openapi_extra={
        "requestBody": {
            "required": True,
            "content": {
                "application/octet-stream": {"schema": {"type": "string", "format": "binary"}}
            },
        }
    },
)
async def upload_image(request: Request) -> UploadAnswer:
    """Hand an image in as the body of a request: JPEG, PNG, WEBP, BMP or GIF.  It stays as long as
    a job or a run has it, and without one for some days."""
    content = await request.body()
    with problems.about("body"):
        kept = await run_in_threadpool(uploads.keep, content, request.app.state.settings)
    return UploadAnswer(uri=kept.uri, width=kept.width, height=kept.height)
