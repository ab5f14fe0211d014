//! Host, device and app as processes of their own.
use crate::world::{Running, World};

#[test]
fn an_app_finds_a_device_by_its_id() {
    let world = World::new();
    let host = world.host();
    let _device = world.device(&host, &["--echo", "--resource", "/temp=21", "--resource", "/led=off"]);

    assert_eq!(world.app(&host, &["send", "2", "hello"]).ok(), "hello\n");
    assert_eq!(world.app(&host, &["get", "2", "/temp"]).ok(), "21\n");
    assert_eq!(world.app(&host, &["put", "2", "/led", "-d", "on"]).ok(), "");
    assert_eq!(world.app(&host, &["get", "2", "/led"]).ok(), "on\n");
    std::fs::write(world.path("led"), "blink").unwrap();
    assert_eq!(world.app(&host, &["put", "2", "/led", "-f", "led"]).ok(), "");
    assert_eq!(world.app(&host, &["get", "2", "/led"]).ok(), "blink\n");

    world.app(&host, &["get", "2", "/nothing"]).fails(4, &["4.04", "Not Found"]);
    world.app(&host, &["delete", "2", "/temp"]).fails(4, &["4.05"]);
    world.app(&host, &["post", "2", "/temp", "x"]).fails(4, &["4.05"]);
    world.app(&host, &["fetch", "2", "/temp", "x"]).fails(4, &["4.05"]);
    world.app(&host, &["patch", "2", "/temp", "x"]).fails(4, &["4.05"]);

    assert_eq!(world.app(&host, &["online", "2"]).ok(), "online\n");
    let offline = world.app(&host, &["online", "99"]);
    assert_eq!((offline.code, offline.stdout.as_str()), (Some(3), "offline\n"), "{offline:?}");
    let pings = world.app(&host, &["ping", "-n", "3", "--interval", "0.05", "2"]).ok();
    assert_eq!(pings.lines().count(), 4, "{pings}");
    assert!(pings.starts_with("1: ") && pings.contains("through host 1"), "{pings}");
    assert!(pings.contains("3 sent, 3 answered, 0 % lost"), "{pings}");
}

#[test]
fn no_host_is_needed_for_an_address() {
    let world = World::new();
    let words = ["node", "--id", "2", "--key-file", "dev.key", "--bind", "127.0.0.1:0", "--echo", "--json"];
    let device = Running::start(world.command(&words));
    let at = format!("2@{}", device.address);
    let with_key = ["--peer-key-file", "dev.key"];
    let send = |peer: &str| world.run(&[&["send", peer, "hi"], &with_key[..]].concat());
    assert_eq!(send(&at).ok(), "hi\n");
    // Whichever net is there.
    assert_eq!(send(&device.address).ok(), "hi\n");
    // With an id and a key of its own, and nothing to register, no state is kept.
    let named = ["send", "--id", "3", "--key-file", "app.key", &at, "hi"];
    assert_eq!(world.run(&[&named, &with_key[..]].concat()).ok(), "hi\n");
    let pings = world.run(&[&["ping", "-n", "1", &at], &with_key[..]].concat()).ok();
    assert!(pings.contains(&format!("direct, {}", device.address)), "{pings}");
}

#[test]
fn lines_of_stdin_are_answered_in_order() {
    let world = World::new();
    let host = world.host();
    let _device = world.device(&host, &["--echo"]);
    let lines: String = (0..200).map(|number| format!("line {number}\n")).collect();
    let words = world.app_words(&host, &["send", "2", "-"]);
    let words: Vec<_> = words.iter().map(String::as_str).collect();
    assert_eq!(world.run_with(&words, lines.as_bytes()).ok(), lines);
    // An empty line is a message; the last one needs no end.
    assert_eq!(world.run_with(&words, b"a\n\nb").ok(), "a\n\nb\n");
    assert_eq!(world.run_with(&words, b"").ok(), "");
}

#[test]
fn a_payload_comes_from_stdin() {
    let world = World::new();
    let host = world.host();
    let _device = world.device(&host, &["--resource", "/led=off"]);
    for put in [&["put", "2", "/led", "-"][..], &["put", "2", "/led", "-f", "-"]] {
        let words = world.app_words(&host, put);
        world.run_with(&words.iter().map(String::as_str).collect::<Vec<_>>(), b"on\nand off").ok();
        assert_eq!(world.app(&host, &["get", "2", "/led"]).ok(), "on\nand off\n");
    }
}

#[test]
fn data_is_printed_where_it_is_not_echoed() {
    let world = World::new();
    let host = world.host();
    let device = world.device(&host, &[]);
    assert_eq!(world.app(&host, &["send", "2", "hello"]).ok(), "\n");
    let data = device.wait_for("data");
    assert_eq!(data["payload"], "hello");
    assert_eq!(data["from"], "00000000000000000000000000000003");
}

#[test]
fn a_pair_key_opens_one_direction() {
    let world = World::new();
    let host = world.host();
    let _device = world.device(&host, &["--echo"]);
    world.run(&["keygen", "--pair", "3", "2", "--key-file", "dev.key", "-o", "pair.key"]).ok();
    let at = format!("1@{}", host.address);
    let words = ["send", "--key-file", "app.key", "--host", &at, "--host-key-file", "host.key"];
    let send =
        |id: &str| world.run(&[&words[..], &["--peer-key-file", "pair.key", "--id", id, "2", "hi"]].concat());
    assert_eq!(send("3").ok(), "hi\n");
    send("4").fails(7, &["pair key"]);
}

#[test]
fn one_key_may_serve_a_fleet_and_ids_may_be_random() {
    let world = World::new();
    let host = world.host();
    let at = format!("1@{}", host.address);
    let words = ["node", "--id", "2", "--key-file", "host.key", "--host", &at, "--bind", "127.0.0.1:0"];
    let device = Running::start(world.command(&[&words[..], &["--echo", "--json"]].concat()));
    device.wait_for("host_connected");
    let send = world.run(&["send", "--key-file", "host.key", "--host", &at, "2", "hi"]);
    assert_eq!(send.ok(), "hi\n");
}

#[test]
fn the_environment_and_the_file_say_it_too() {
    let world = World::new();
    let host = world.host();
    let _device = world.device(&host, &["--echo"]);
    let config =
        format!("host = \"1@{}\"\nhost_key_file = \"host.key\"\n[peers]\nkitchen = \"2\"\n", host.address);
    std::fs::write(world.path("my.toml"), config).unwrap();
    let key = std::fs::read_to_string(world.path("dev.key")).unwrap();
    let mut command = world.command(&["send", "--config", "my.toml", "kitchen", "hi"]);
    let output =
        command.env("M2M_PEER_KEY", key.trim()).env("M2M_ID", "3").env("M2M_KEY_FILE", "app.key").output();
    let output = output.unwrap();
    assert_eq!(output.stdout, b"hi\n", "{output:?}");
}

#[test]
fn two_commands_of_one_id_wait_for_each_other() {
    let world = World::new();
    let host = world.host();
    let _device = world.device(&host, &["--echo"]);
    std::thread::scope(|scope| {
        for text in ["one", "two", "three"] {
            let (world, words) = (&world, world.app_words(&host, &["send", "2", text]));
            scope.spawn(move || {
                let words: Vec<_> = words.iter().map(String::as_str).collect();
                assert_eq!(world.run(&words).ok(), format!("{text}\n"));
            });
        }
    });
}
