//! `keygen` and `id`.
use crate::world::{World, mode};

#[test]
fn a_key_is_32_hex_digits_and_another_each_time() {
    let world = World::new();
    let (one, two) = (world.run(&["keygen"]).ok(), world.run(&["keygen"]).ok());
    assert!(
        one.trim_end().len() == 32 && one.trim_end().bytes().all(|byte| byte.is_ascii_hexdigit()),
        "{one}"
    );
    assert_ne!(one, two);
}

#[test]
fn a_key_file_is_its_owners_alone_and_never_overwritten() {
    let world = World::new();
    assert_eq!(world.run(&["keygen", "-o", "new.key"]).ok(), "");
    assert_eq!(mode(&world.path("new.key")), 0o600);
    let before = std::fs::read(world.path("new.key")).unwrap();
    world.run(&["keygen", "-o", "new.key"]).fails(7, &["new.key"]);
    assert_eq!(std::fs::read(world.path("new.key")).unwrap(), before);
}

#[test]
fn a_passphrase_gives_the_same_key_everywhere() {
    let world = World::new();
    let make =
        |label: &str, words: &[u8]| world.run_with(&["keygen", "--passphrase", "--label", label], words);
    let one = make("garden", b"correct horse battery staple\n").ok();
    assert_eq!(make("garden", b"correct horse battery staple").ok(), one);
    assert_ne!(make("house", b"correct horse battery staple").ok(), one);
    make("garden", b"short\n").fails(7, &["12"]);
}

#[test]
fn a_pair_key_is_made_from_the_responders_key() {
    let world = World::new();
    let pair = world.run(&["keygen", "--pair", "3", "2", "--key-file", "dev.key"]).ok();
    assert!(pair.starts_with("m2m-pair v1 "), "{pair}");
    assert_eq!(world.run(&["keygen", "--pair", "3", "2", "--key-file", "dev.key"]).ok(), pair);
    assert_ne!(world.run(&["keygen", "--pair", "2", "3", "--key-file", "dev.key"]).ok(), pair);
    world.run(&["keygen", "--pair", "3", "2"]).fails(7, &["--key-file"]);
    world.run(&["keygen", "--pair", "3", "3", "--key-file", "dev.key"]).fails(7, &["two ids"]);
    world.run(&["keygen", "--pair", "3"]).fails(2, &["--pair"]);
}

#[test]
fn id_shows_who_this_net_is() {
    let world = World::new();
    let words = ["id", "--id", "2", "--key-file", "dev.key", "--json"];
    let shown = world.run(&words);
    let objects = shown.objects();
    assert_eq!(objects[0]["id"], "00000000000000000000000000000002");
    assert_eq!(objects[0]["device"].as_str().map(str::len), Some(64));
    let folder = objects[0]["state_dir"].as_str().unwrap();
    assert!(folder.starts_with(world.path(".local/state/m2m").to_str().unwrap()), "{folder}");
    // The device key stays the same.
    assert_eq!(world.run(&words).ok(), shown.ok());
    world.run(&["id"]).fails(7, &["--id"]);
}
