# The official client for Python on the buckets of official.rs: reads what we wrote and writes what we are to read.
import asyncio, hashlib, sys
import nats


async def main(url, digest):
    client = await nats.connect(url)
    js = client.jetstream()
    keys = await js.key_value("acme_shop_b")
    assert (await keys.get("user.1")).value == b"ours"
    assert sorted(await keys.keys()) == ["n", "user.1"], await keys.keys()
    await keys.put("user.2", b"theirs")
    await keys.delete("n")
    objects = await js.object_store("acme_shop_objects_c")
    found = await objects.get("a/b ü")
    assert hashlib.sha256(found.data).hexdigest() == digest, "the object's content"
    assert found.info.size == len(found.data) and found.info.chunks == 3, found.info
    assert [one.name for one in await objects.list()] == ["a/b ü"]
    await objects.put("theirs", found.data + b"more")
    await objects.delete("a/b ü")
    await js.create_object_store("acme_shop_objects_made")
    await client.close()


asyncio.run(main(*sys.argv[1:]))
