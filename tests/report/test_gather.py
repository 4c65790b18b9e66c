"""Files of a work directory that would stop the page are left out and named."""

import os

import PIL.Image
from tiny_images import encode, huge_png

from vmoe_prc.report.embedding import MAX_BYTES
from vmoe_prc.report.gather import saved_section
from vmoe_prc.report.runs import Run


def test_pictures_that_would_stop_the_page_are_left_out(tmp_path):
    saved = tmp_path / "analysis"
    saved.mkdir()
    good = encode(PIL.Image.new("RGB", (64, 32)), "png")
    (saved / "good.png").write_bytes(good)
    contents = {
        "bomb": huge_png(),
        "wide": huge_png(100_000, 500),
        "cut": good[: len(good) // 2],
        "jpeg": encode(PIL.Image.new("RGB", (64, 32)), "jpeg"),
        "svg": b"<svg onload='alert(1)'/>",
        "long": good + bytes(MAX_BYTES),
    }
    for name, content in contents.items():
        (saved / f"{name}.png").write_bytes(content)
    os.mkfifo(saved / "pipe.png")
    (saved / "folder.png").mkdir()
    section, warnings = saved_section([Run(tmp_path, {}, {}, [])])
    assert [picture.caption for picture in section.pictures] == [f"{tmp_path.name}: good.png"]
    assert len(warnings) == len(contents) + 2
    assert all("\n" not in warning for warning in warnings)
    (bomb,) = [warning for warning in warnings if "bomb.png" in warning]
    assert "60000" in bomb or "3600000000" in bomb
