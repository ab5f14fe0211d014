//! Each thing that goes wrong has a sentence and an exit code of its own.
use std::fs;

use crate::world::World;

#[test]
fn a_wrong_key_is_told() {
    let world = World::new();
    let host = world.host();
    let _device = world.device(&host, &["--echo"]);
    let at = format!("1@{}", host.address);
    let words = ["send", "--key-file", "app.key", "--host", &at, "--host-key-file", "host.key"];
    world.run(&[&words[..], &["--peer-key-file", "app.key", "2", "hi"]].concat()).fails(6, &["key"]);
}

#[test]
fn a_wrong_key_without_a_host_is_a_guess() {
    let world = World::new();
    let words = ["node", "--id", "2", "--key-file", "dev.key", "--bind", "127.0.0.1:0", "--json"];
    let device = crate::world::Running::start(world.command(&words));
    let at = format!("2@{}", device.address);
    world.run(&["send", "--key-file", "app.key", &at, "hi"]).fails(3, &["key", "another id"]);
}

#[test]
fn a_wrong_host_key_is_told() {
    let world = World::new();
    let host = world.host();
    let at = format!("1@{}", host.address);
    let start = std::time::Instant::now();
    let words = ["online", "--key-file", "app.key", "--host", &at, "2"];
    world.run(&words).fails(3, &[&at, "wrong host key"]);
    assert!(start.elapsed().as_secs() < 20, "{:?}", start.elapsed());
}

#[test]
fn an_unknown_id_ends_the_wait_at_once() {
    let world = World::new();
    let host = world.host();
    let start = std::time::Instant::now();
    world.app(&host, &["send", "99", "hi"]).fails(3, &["99"]);
    assert!(start.elapsed().as_secs() < 5, "{:?}", start.elapsed());
}

#[test]
fn a_dead_host_is_told() {
    let world = World::new();
    let mut host = world.host();
    host.signal("KILL");
    host.end();
    world.app(&host, &["send", "2", "hi"]).fails(3, &["host"]);
    let online = world.app(&host, &["--timeout", "1", "online", "2"]);
    assert_eq!(online.stdout, "");
    online.fails(3, &["1 s"]);
}

#[test]
fn a_port_in_use_is_told() {
    let world = World::new();
    let host = world.host();
    let words = ["server", "--id", "5", "--key-file", "host.key", "--bind", &host.address];
    world.run(&words).fails(1, &["in use", &host.port().to_string()]);
}

#[test]
fn a_state_folder_in_use_is_told() {
    let world = World::new();
    let _host = world.host();
    let words =
        ["server", "--id", "1", "--key-file", "host.key", "--bind", "127.0.0.1:0", "--state-dir", "host"];
    world.run(&words).fails(7, &["in use by process"]);
}

#[test]
fn a_state_folder_that_cannot_be_written_is_told() {
    let world = World::new();
    fs::write(world.path("file"), "").unwrap();
    let words = ["node", "--id", "2", "--key-file", "dev.key", "--state-dir", "file/state"];
    world.run(&words).fails(7, &["file/state", "--state-dir"]);
    let words = [
        "send",
        "--id",
        "3",
        "--key-file",
        "app.key",
        "--host",
        "1@127.0.0.1:9",
        "--state-dir",
        "file/state",
    ];
    world.run(&[&words[..], &["2", "hi"]].concat()).fails(7, &["file/state"]);
    assert_eq!(fs::read(world.path("file")).unwrap(), b"");
}

#[test]
fn a_key_file_that_is_none_is_told() {
    let world = World::new();
    let try_key = |words: &[&str]| {
        world.run(&["server", "--id", "1", "--key-file", "bad.key", "--bind", "127.0.0.1:0"]).fails(7, words)
    };
    try_key(&["bad.key"]);
    fs::write(world.path("bad.key"), "0123456789abcdef").unwrap();
    let sentence = try_key(&["bad.key", "16"]);
    assert!(!sentence.contains("0123456789abcdef"), "{sentence}");
    fs::write(world.path("bad.key"), "not a key at all, but words\n").unwrap();
    try_key(&["bad.key", "hex"]);
}

#[test]
fn a_broken_configuration_is_told_with_its_line() {
    let world = World::new();
    fs::create_dir_all(world.path(".config/m2m")).unwrap();
    fs::write(world.path(".config/m2m/config.toml"), "timeout = 5\nhots = \"1@relay\"\n").unwrap();
    world.run(&["online", "2"]).fails(7, &["config.toml", "line 2", "hots"]);
    world.run(&["online", "--config", "none.toml", "2"]).fails(7, &["none.toml"]);
}

#[test]
fn what_is_missing_is_asked_for() {
    let world = World::new();
    world.run(&["send", "--key-file", "app.key", "2", "hi"]).fails(7, &["--host"]);
    world.run(&["send", "2@127.0.0.1:9", "hi"]).fails(7, &["--peer-key-file"]);
    world.run(&["online", "--host", "1@127.0.0.1:9", "2"]).fails(7, &["--host-key-file"]);
    world.run(&["online", "2@127.0.0.1:9"]).fails(7, &["--host", "m2m ping"]);
    let words = ["send", "--id", "3", "--host", "1@127.0.0.1:9", "--host-key-file", "host.key"];
    world.run(&[&words[..], &["--peer-key-file", "dev.key", "2", "hi"]].concat()).fails(7, &["--key-file"]);
    world.run(&["keygen", "--pair", "3", "2"]).fails(7, &["key of 2"]);
    world.run(&["server", "--bind", "9530"]).fails(2, &["0.0.0.0:9530"]);
    world.run(&["node", "--key-file", "dev.key"]).fails(7, &["--id"]);
    world.run(&["server", "--id", "1"]).fails(7, &["--key-file"]);
    world.run(&["send", "--key-file", "app.key", "kitchen", "hi"]).fails(7, &["kitchen", "[peers]"]);
}

#[test]
fn usage_errors_have_their_code() {
    let world = World::new();
    for words in [
        &["send", "2"][..],
        &["send", "--id", "xyz", "2", "hi"],
        &["send", "0", "hi"],
        &["ping", "-n", "0", "2"],
        &["server", "--bind", "nowhere"],
        &["node", "--resource", "temp"],
        &["dance"],
        &[],
    ] {
        assert_eq!(world.run(words).code, Some(2), "{words:?}");
    }
    assert_eq!(world.run(&["--help"]).code, Some(0));
    assert_eq!(world.run(&["--version"]).code, Some(0));
}

/// The host remembers which device key an id belongs to; the net key alone does not make the device.
#[test]
fn an_impostor_is_refused() {
    let world = World::new();
    let host = world.host();
    let _device = world.device(&host, &["--echo"]);
    let at = format!("1@{}", host.address);
    let words = ["node", "--id", "2", "--key-file", "dev.key", "--host", &at, "--host-key-file", "host.key"];
    let more = ["--bind", "127.0.0.1:0", "--state-dir", "elsewhere", "--json"];
    let impostor = crate::world::Running::start(world.command(&[&words[..], &more].concat()));
    let refused = impostor.wait_for("host_refused");
    assert!(
        refused["why"].as_str().is_some_and(|why| why.contains("claimed by another key since 20")),
        "{refused}"
    );
    assert_eq!(world.app(&host, &["send", "2", "still you?"]).ok(), "still you?\n");
}

/// A device that lost its state folder gets its id back when the host's operator frees it, beside the running host.
#[test]
fn claims_are_shown_and_changed_beside_the_host() {
    let world = World::new();
    let claims = |words: &[&str]| world.run(&[&["server", "claims", "--state-dir", "host"], words].concat());
    let none = claims(&["list"]);
    assert_eq!((none.code, none.stdout.as_str()), (Some(0), ""), "{none:?}");
    assert!(none.stderr.contains("no id is claimed"), "{none:?}");

    let host = world.host();
    drop(world.device(&host, &[]));
    let listed = claims(&["list", "--json"]).objects();
    assert_eq!(listed.len(), 1, "{listed:?}");
    assert!(listed[0]["since"].as_str().is_some_and(|since| since.starts_with("20")), "{listed:?}");
    let by_key = world.run(&["id", "--id", "2", "--key-file", "dev.key", "--json"]).objects();
    assert_eq!((&listed[0]["id"], &listed[0]["device"]), (&by_key[0]["id"], &by_key[0]["device"]));

    assert_eq!(claims(&["forget", "2", "--json"]).objects()[0]["was_claimed"], true);
    assert_eq!(claims(&["forget", "2", "--json"]).objects()[0]["was_claimed"], false);
    let device = world.device(&host, &["--state-dir", "elsewhere"]);
    drop(device);

    let public = "0a".repeat(32);
    assert_eq!(claims(&["pin", "2", &public]).code, Some(0));
    assert!(claims(&["list"]).ok().contains(&format!("2  {public}  since 20")));
    claims(&["pin", "2", "0a"]).fails(2, &["64 hex digits"]);
    world.run(&["server", "claims", "list"]).fails(7, &["--id"]);
}

#[test]
fn damaged_state_stops_a_device_only_where_it_must() {
    let world = World::new();
    let host = world.host();
    drop(world.device(&host, &["--state-dir", "dev"]));
    fs::write(world.path("dev/epoch"), "").unwrap();
    let device = world.device(&host, &["--state-dir", "dev"]);
    assert!(device.words().contains("epoch: the file is damaged"), "{}", device.words());
    drop(device);

    fs::write(world.path("dev/device.key"), "abcd").unwrap();
    let words = ["--id", "2", "--key-file", "dev.key", "--state-dir", "dev"];
    world.run(&[&["node"], &words[..]].concat()).fails(7, &["device.key", "claims forget"]);
    world.run(&[&["id"], &words[..]].concat()).fails(7, &["device.key"]);
    drop(host);
    fs::write(world.path("host/claims.redb"), "no database").unwrap();
    let words = ["server", "--id", "1", "--key-file", "host.key", "--state-dir", "host"];
    world.run(&[&words[..], &["--bind", "127.0.0.1:0"]].concat()).fails(7, &["claims.redb"]);
    world.run(&[&words[..], &["claims", "list"]].concat()).fails(7, &["claims.redb"]);
}

#[test]
fn a_host_has_no_resources_and_says_so_at_once() {
    let world = World::new();
    let host = world.host();
    let start = std::time::Instant::now();
    world.run(&["get", "--key-file", "host.key", &format!("1@{}", host.address), "/x"]).fails(4, &["4.04"]);
    assert!(start.elapsed().as_secs() < 4, "{:?}", start.elapsed());
}

#[test]
fn a_host_that_was_never_reached_is_not_called_disconnected() {
    let world = World::new();
    let dead = std::net::UdpSocket::bind("127.0.0.1:0").unwrap();
    let at = format!("1@{}", dead.local_addr().unwrap());
    let words = ["node", "--id", "2", "--key-file", "dev.key", "--host", &at, "--bind", "127.0.0.1:0"];
    let device = crate::world::Running::start(world.command(&[&words[..], &["--json"]].concat()));
    assert_eq!(device.wait_for("host_disconnected")["was_connected"], false);
}
