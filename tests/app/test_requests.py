"""What a visitor may ask for: each bad request is answered with its sentence."""

import math
import shlex

import pytest

from diffusion_jax.app.requests import Limits, Request, checked, command
from diffusion_jax.errors import UserError

LIMITS = Limits(number=8, steps=50, guidance_scale=10.0, prompt_characters=20)
SAMPLERS = ("ddim", "heun")


def test_a_good_request_has_whole_numbers_and_one_line_afterwards():
    request = checked(Request(prompt="  a red\n star ", number=3.0, num_steps=7.0, seed=1.0), LIMITS, SAMPLERS)
    assert (request.prompt, request.number, request.num_steps, request.seed) == ("a red star", 3, 7, 1)
    assert isinstance(request.number, int) and isinstance(request.seed, int)


@pytest.mark.parametrize(
    ("fields", "sentence"),
    [
        ({"prompt": "x" * 21}, "The prompt has 21 characters; at most 20 are read. Shorten it."),
        ({"prompt": None}, "The prompt must be text."),
        ({"number": 9}, "The number of pictures must be a number from 1 to 8; got 9."),
        ({"number": 0}, "The number of pictures must be a number from 1 to 8; got 0."),
        ({"number": 1.5}, "The number of pictures must be a whole number; got 1.5."),
        ({"number": None}, "The number of pictures must be a number from 1 to 8; got nothing."),
        ({"num_steps": 51}, "The number of steps must be a number from 1 to 50; got 51."),
        ({"num_steps": "many"}, "The number of steps must be a number from 1 to 50; got 'many'."),
        ({"guidance_scale": math.nan}, "The guidance scale must be a number from 0 to 10; got nan."),
        ({"guidance_scale": -1}, "The guidance scale must be a number from 0 to 10; got -1."),
        ({"seed": 2**32}, "The seed must be a number from 0 to 4.29497e\\+09; got 4.29497e\\+09."),
        ({"sampler": "magic"}, "There is no sampler 'magic'. There are ddim, heun."),
        ({"strength": 1.1}, "The strength must be a number from 0 to 1; got 1.1."),
        ({"mask": "m.png"}, "There is no picture to repaint. Put one into the editor first."),
    ],
)
def test_a_bad_request_is_answered_with_a_sentence(fields, sentence):
    with pytest.raises(UserError, match=f"^{sentence}$"):
        checked(Request(**fields), LIMITS, SAMPLERS)


def test_the_command_survives_a_shell():
    prompt = "a 'red' star; rm -rf $HOME `ls`"
    request = Request(prompt=prompt, number=2, seed=7, sampler="heun", picture="a b.png", mask="m.png", enlarge=True)
    words = shlex.split(command(request, "runs/my run", "runs/up", "text", {"num_steps": 9}))
    assert words[:2] == ["python", "sample.py"]
    assert {f"--prompt={prompt}", "--checkpoint=runs/my run", "--init_image=a b.png", "--mask=m.png"} <= set(words)
    assert {"--num_samples=2", "--seed=7", "--sampler=heun", "--num_steps=9", "--upsampler=runs/up"} <= set(words)
    plain = command(Request(label=3), "runs/c", None, "label", {"spacing": "ddim25"})
    assert "--label=3" in plain and "--spacing=ddim25" in plain and "--prompt" not in plain and "--mask" not in plain
