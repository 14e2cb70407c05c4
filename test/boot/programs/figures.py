"""Prints what depends on nothing but the CPU and Python: `python3 figures.py SEED ROUNDS`."""

import base64, binascii, bz2, collections, datetime, decimal, fractions, hashlib, hmac, json, lzma, math, os, pickle, queue
import random, re, sqlite3, struct, sys, threading, unicodedata, zlib

seed, rounds = int(sys.argv[1]), int(sys.argv[2])


def show(name, value):
    text = value if isinstance(value, (bytes, bytearray)) else repr(value).encode()
    print(name, hashlib.sha256(text).hexdigest(), flush=True)


def doubles(count):
    for _ in range(count):
        yield struct.unpack("<d", random.randbytes(8))[0]


def ordinary(count, low, high):
    for _ in range(count):
        yield random.uniform(low, high)


def hashes():
    for name in sorted(hashlib.algorithms_guaranteed):
        for size in (0, 1, 55, 64, 1000, 65537):
            digest = hashlib.new(name, data[:size])
            show(f"{name} {size}", digest.digest(32) if name.startswith("shake") else digest.digest())
    show("hmac", hmac.digest(data[:20], data, "sha512"))
    show("pbkdf2", hashlib.pbkdf2_hmac("sha256", b"word", data[:16], 500))
    show("scrypt", hashlib.scrypt(b"word", salt=data[:16], n=256, r=8, p=1))
    show("crc", (zlib.crc32(data), zlib.adler32(data), binascii.crc_hqx(data, 0), base64.b85encode(data[:999])))


def floats():
    values = list(doubles(1500)) + list(ordinary(1500, -1e6, 1e6))
    show("repr", [repr(v) for v in values])
    show("formats", [f"{v:.17g} {v:.3f} {v:e} {v:.10%}" for v in values if abs(v) < 1e30])
    show("hex", [v.hex() for v in values])
    show("parsed", [float(repr(v)) for v in values])
    show("round", [round(v, 3) for v in values if math.isfinite(v) and abs(v) < 1e15])
    show("ratio", [v.as_integer_ratio() for v in values if math.isfinite(v)])
    show("sum", math.fsum(v for v in values if math.isfinite(v) and abs(v) < 1e300))
    show("single", [struct.pack("<f", v) for v in values if abs(v) < 3e38])
    show("half", [struct.pack("<e", v) for v in ordinary(500, -60000, 60000)])
    for name in "sin cos tan atan sinh cosh tanh exp expm1 log1p sqrt cbrt gamma lgamma erf erfc floor ceil".split():
        function = getattr(math, name)
        results = []
        for v in ordinary(300, 0, 30):
            results.append(function(v))
        show(name, results)
    show("pow", [math.pow(a, b) for a, b in zip(ordinary(300, 0, 50), ordinary(300, -20, 20))])
    show("fmod", [math.fmod(a, b) for a, b in zip(ordinary(300, -1e18, 1e18), ordinary(300, 0.1, 20))])
    show("atan2", [math.atan2(a, b) for a, b in zip(doubles(300), doubles(300))])
    show("complex", [(complex(a, b) ** 2.5) for a, b in zip(ordinary(200, -9, 9), ordinary(200, -9, 9))])


def integers():
    a, b = random.getrandbits(3000), random.getrandbits(1300)
    show("big", (a * b, a // b, a % b, pow(a, b, (1 << 521) - 1), math.isqrt(a), math.gcd(a, b), a ^ b, a >> 77))
    show("factorial", math.factorial(700))
    show("decimal text", str(a))
    primes = [n for n in range(2, 4000) if all(n % d for d in range(2, math.isqrt(n) + 1))]
    show("primes", primes)
    show("comb", [math.comb(n, n // 3) for n in range(120)])


def precise():
    decimal.getcontext().prec = 300
    x, three = decimal.Decimal(3), decimal.Decimal(3)
    lasts, t, s, n, na, d, da = 0, three, 3, 1, 0, 0, 24
    while s != lasts:
        lasts = s
        n, na = n + na, na + 8
        d, da = d + da, da + 32
        t = (t * n) / d
        s += t
    show("pi", s)
    show("decimal", [decimal.Decimal(2).sqrt(), decimal.Decimal(10).ln(), (decimal.Decimal(1) / 7).exp()])
    show("fraction", sum((fractions.Fraction(1, k * k) for k in range(1, 150)), fractions.Fraction(0)))


def texts():
    words = [re.sub(r"[^a-z]", "", base64.b64encode(random.randbytes(9)).decode().lower()) for _ in range(3000)]
    text = " ".join(words)
    show("regex", re.findall(r"\b([b-d][a-f]*?)([aeiou]{1,2})(?=[x-z]|\s)", text))
    show("replace", re.sub(r"(?P<a>[a-m]+)(?P<b>[n-z]+)", lambda m: m["b"].upper() + m["a"], text))
    show("counter", collections.Counter(text).most_common())
    show("sorted", sorted(words, key=lambda w: (len(w), w[::-1])))
    tree = {w: {"n": i, "x": i / 7, "l": list(w)} for i, w in enumerate(words[:800])}
    again = json.loads(json.dumps(tree, indent=1))
    show("json", json.dumps(again, sort_keys=True))
    assert again == tree and pickle.loads(pickle.dumps(tree)) == tree
    show("unicode", [unicodedata.normalize(f, "".join(map(chr, range(0x1E00, 0x2200)))) for f in ("NFD", "NFKC")])
    day = datetime.datetime(1970, 1, 1)
    show("dates", [(day + datetime.timedelta(seconds=random.getrandbits(33))).strftime("%c %j %U") for _ in range(500)])


def packed():
    blob = b"".join(random.choice((b"hypervisor", b"domain", random.randbytes(3))) for _ in range(30000))
    for module in (zlib, bz2, lzma):
        small = module.compress(blob)
        show(module.__name__, small)
        assert module.decompress(small) == blob


def database():
    with sqlite3.connect(":memory:") as db:
        db.execute("create table t (a integer primary key, b real, c text)")
        rows = ((i, random.random(), hex(random.getrandbits(40))) for i in range(3000))
        db.executemany("insert into t values (?,?,?)", rows)
        db.execute("create index i on t (c)")
        show("sql", db.execute("select substr(c,3,1) k, count(*), sum(b), max(c) from t group by k order by k").fetchall())
        show("join", db.execute("select x.a, y.a from t x join t y on x.c < y.c and y.a = x.a + 1 limit 900").fetchall())


def together():
    jobs, results, lock, total = queue.Queue(), {}, threading.Lock(), [0]

    def work():
        while (job := jobs.get()) is not None:
            digest = hashlib.sha256(data[job : job + 70000]).hexdigest()
            with lock:
                results[job] = digest
                total[0] += len(digest)

    threads = [threading.Thread(target=work) for _ in range(4)]
    for thread in threads:
        thread.start()
    for job in range(200):
        jobs.put(job)
    for _ in threads:
        jobs.put(None)
    for thread in threads:
        thread.join()
    show("threads", (sorted(results.items()), total))
    children = []
    for n in range(4):
        out, into = os.pipe()
        if (pid := os.fork()) == 0:
            os.write(into, hashlib.blake2b(data, person=bytes([n])).digest())
            os._exit(n)
        os.close(into)
        children.append((pid, out))
    show("forks", [(os.read(out, 100), os.waitstatus_to_exitcode(os.waitpid(pid, 0)[1])) for pid, out in children])


for turn in range(rounds):
    random.seed(seed * 1000 + turn)
    data = random.randbytes(100000)
    for part in (hashes, floats, integers, precise, texts, packed, database, together):
        part()
