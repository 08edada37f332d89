"""The arguments that `torch_steps.py` and `unforget_steps.py` share."""

import argparse


def parser(description):
    """The shared argument parser, with `description` as its help text."""
    parser = argparse.ArgumentParser(description=description, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("model")
    parser.add_argument("facts_file", metavar="FACTS.tsv")
    parser.add_argument("what", choices=["sft", "self-distill", "evaluate", "audit", "load"])
    parser.add_argument("--batch-size", type=int, default=32)
    parser.add_argument("--steps", type=int, default=10)
    parser.add_argument("--chat-tokens", type=int, default=0, help="train on made-up chats with this many tokens instead of the facts")
    parser.add_argument("--facts", type=int, default=1000)
    parser.add_argument("--num-prompts", type=int, default=20)
    parser.add_argument("--samples", type=int, default=16)
    parser.add_argument("--threads", type=int, default=2)
    return parser
