"""Blocked words of at most four letters (slurs, insults, body parts), stored as hashes so that nobody must read them.

To add a word, put its `hash_word` into `_TEXT`.
"""

from __future__ import annotations

import hashlib


def hash_word(word: str) -> str:
    """The hash of a word as in the list: eight hexadecimal digits."""
    return hashlib.blake2b(word.lower().encode(), digest_size=4).hexdigest()


def is_blocked(word: str) -> bool:
    """Whether the word, or the word without a plural s, is in the list."""
    return hash_word(word) in _HASHES or hash_word(word.removesuffix("s")) in _HASHES


_TEXT = """
0101f1bf 01874941 025d2164 03290a6d 03bf6d13 04dded34 058c163a 07127aaf 077d8c12 0985721d 09b79159 0d6fc587
10efd076 121b420b 1293111b 132914ce 14c603f9 1535a5ff 18db3f38 18f38633 1bb66a27 21d7badb 222379e2 24c93de5
266e8b94 2b813759 2b97ae47 2bb7ecc4 2dfceb9b 31e3da28 35a128d7 35d3fc60 3791403a 3894a0eb 39aac1c5 39af6ada
39fabc78 3a707c91 3a7b6890 3ae0ff52 3cf899ee 41c960da 4449cb8c 45703c91 464339a7 48486df7 4b47a624 4d12e2af
4d6a6e63 4da9bbc1 4e3226e5 50425f94 53946d94 53b815ff 5461c743 57831cff 57c83485 59c1053e 5d43aec8 6151ab1f
629cd818 62aac3a3 63143518 64cf5377 64d2be02 64fc87b6 65162331 6546269c 66d35fd7 6b5dbad0 6ca2a9f1 6ca9f4b8
6cbd69f8 6d41c3a7 6d6fe3b3 6dbd81a4 6eb65177 6f0eb999 6fa07177 70095740 704c10b4 74e18fe1 75360b3d 75cd4712
7640140a 771722fb 79d18a39 7af4a22b 7c990e9e 7d928459 7ef1e764 81303d7e 8154175d 81d7e77b 837b942d 85491213
86bbff96 88be660d 88ece5aa 890e2089 8d21b40c 903f31b2 913b8d1e 9153d85f 9229bb86 93604065 94263564 9510b8cf
9516173d 961bad76 97de9cd7 9b230053 9c88724b 9d2b4719 9dee248d a139bf69 a21f825a a3b4c16b a45ee228 a57bb05c
a6e5051c a80c85da a97949e3 a9cdd30d aa8adb23 ab1d44c2 ab52c6b3 ac1e7ed9 ae6bfea3 aed54d3c b3689c5c b50cf476
b605390d b61e4cfd b8c0be56 b8f48e17 b9158819 bb20c378 bcbd0b0a bea5ab16 c01c5a96 c0c15e83 c189dab8 c1cfd8b5
c3621d14 c39b91b3 c3e125ab c6ab6c5f c7f00331 d0ab0a8a d12b651b d150b5f1 d28671af d4851390 d499e055 d4a5dbcf
d4fd4052 d7622791 d830a6aa d8eb5145 dabd4083 db53ad49 dc215589 dc96d25b dcb8d8a6 e0baa179 e0c201d8 e0ccf2fb
e207f9c9 e2320721 e262eba6 e328c83c e3ef9532 e44c6b6a e64f5cdf e71aed52 ebaec219 ebb11112 ebc6dbb0 ecc050f6
eed3ab5f ef991779 efcdabfe eff4a280 f117f9fb f3d591bb f565e36c f68febbb fa147ae9 fba33e1b fcda0955 fdef4fed
ff3f4838
"""
_HASHES = frozenset(_TEXT.split())
