"""Ways in which a disk, a copy or a network harms a file; each changes its bytes in place."""

import random


def truncate(content: bytearray, draw: random.Random) -> None:
    del content[draw.randrange(len(content)) :]


def flip_a_bit(content: bytearray, draw: random.Random) -> None:
    content[draw.randrange(len(content))] ^= 1 << draw.randrange(8)


def flip_a_bit_of_the_table(content: bytearray, draw: random.Random) -> None:
    """Of the names, sizes and places at a zip file's end, which no check sum covers."""
    content[draw.randrange(content.index(b"PK\1\2"), len(content))] ^= 1 << draw.randrange(8)


def zero_a_block(content: bytearray, draw: random.Random) -> None:
    first = draw.randrange(0, len(content), 512)
    content[first : first + 512] = bytes(len(content[first : first + 512]))


def swap_blocks(content: bytearray, draw: random.Random) -> None:
    one, two = (512 * block for block in draw.sample(range(len(content) // 512), 2))
    content[one : one + 512], content[two : two + 512] = content[two : two + 512], content[one : one + 512]


def lose_the_end(content: bytearray, draw: random.Random) -> None:
    """It is as long as it was to be, but the later bytes were never written."""
    first = draw.randrange(len(content))
    content[first:] = bytes(len(content) - first)


def append(content: bytearray, draw: random.Random) -> None:
    content += draw.randbytes(draw.randrange(1, 1000))


def flip_and_append_much(content: bytearray, draw: random.Random) -> None:
    """So much that the table is no longer where it is looked for."""
    flip_a_bit(content, draw)
    content += bytes(70_000)


DAMAGES = [
    truncate,
    flip_a_bit,
    flip_a_bit_of_the_table,
    zero_a_block,
    swap_blocks,
    lose_the_end,
    append,
    flip_and_append_much,
]
