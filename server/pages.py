"""The pages that people open in a browser: `/`, `/training`, and the files that they are made of.

They hold no secret and ask for no key; what they ask of the API does. Everything comes from this server and nothing from
elsewhere, which the headers below make the browser see to.
"""

from __future__ import annotations

from pathlib import Path

from fastapi import APIRouter, Request, Response
from fastapi.staticfiles import StaticFiles

STATIC = Path(__file__).resolve().parent / "static"
POLICY = (
    "default-src 'self'",  # scripts, styles, images, requests: from here only, and nothing written into the page itself
    "img-src 'self' blob:",  # and the pictures and sounds that a person shows the page, which no other site can name
    "media-src blob:",
    "base-uri 'none'",
    "form-action 'none'",
    "frame-ancestors 'none'",
    "object-src 'none'",
    "require-trusted-types-for 'script'",  # a script that would turn text into HTML is stopped
    "trusted-types 'none'",
)
HEADERS = {
    "Content-Security-Policy": "; ".join(POLICY),
    "X-Content-Type-Options": "nosniff",
    "Referrer-Policy": "no-referrer",
    "Cache-Control": "no-cache",  # kept, and asked for again: an unchanged file costs a 304
}
# Windows may think otherwise.
TYPES = {".js": "text/javascript", ".css": "text/css", ".svg": "image/svg+xml", ".html": "text/html"}
files = StaticFiles(directory=STATIC, check_dir=False)
router = APIRouter(include_in_schema=False)


@router.api_route("/", methods=["GET", "HEAD"])
async def playground(request: Request) -> Response:
    """Where a model is tried out."""
    return await page(request, "index.html")


@router.api_route("/training", methods=["GET", "HEAD"])
async def training(request: Request) -> Response:
    """The live page of training."""
    return await page(request, "training.html")


@router.api_route("/static/{name}", methods=["GET", "HEAD"])
async def static(request: Request, name: str) -> Response:
    """A script, a style sheet, an image."""
    return await page(request, name)


async def page(request: Request, name: str) -> Response:
    """A file of `server/static/`, or 304 for a browser that has it.

    Raises:
        HTTPException: 404.
    """
    response = await files.get_response(name, request.scope)
    response.headers.update(HEADERS)
    if response.status_code == 200:
        response.headers["Content-Type"] = f"{TYPES.get(Path(name).suffix, 'application/octet-stream')}; charset=utf-8"
    return response
