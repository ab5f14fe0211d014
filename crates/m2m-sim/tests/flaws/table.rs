//! `docs/flaws.md` can't promise what is not there.
use std::path::{Path, PathBuf};

/// The sources in which a row's test may stand.
const PLACES: &[&str] = &["crates/m2m-sim/tests/flaws", "crates/m2m/tests/net"];
const ROWS: &[(char, u32)] = &[('B', 25), ('S', 10), ('M', 15)];

fn root() -> PathBuf {
    Path::new(env!("CARGO_MANIFEST_DIR")).join("../..")
}

fn sources() -> String {
    let files = PLACES.iter().flat_map(|place| std::fs::read_dir(root().join(place)).expect("it is there"));
    let paths =
        files.map(|file| file.unwrap().path()).filter(|path| path.extension().is_some_and(|e| e == "rs"));
    paths.map(|path| std::fs::read_to_string(path).unwrap()).collect()
}

/// True if there is a test of this name: an attribute that says so stands right above it.
fn is_test(sources: &str, name: &str) -> bool {
    let heads = [format!("fn {name}()"), format!("async fn {name}()")];
    let lines: Vec<&str> = sources.lines().map(str::trim).collect();
    lines.windows(2).any(|two| {
        let is_marked = two[0] == "#[test]" || two[0].starts_with("#[tokio::test");
        is_marked && heads.iter().any(|head| two[1].starts_with(head))
    })
}

#[test]
fn each_row_names_tests_that_exist_or_says_what_it_waits_for() {
    let (text, sources) = (std::fs::read_to_string(root().join("docs/flaws.md")).unwrap(), sources());
    let lines = text.lines().filter_map(|line| line.strip_prefix("| ")?.strip_suffix(" |"));
    let table: Vec<Vec<&str>> = lines.map(|line| line.split(" | ").collect()).collect();
    for (letter, last) in ROWS {
        for number in 1..=*last {
            let row = format!("{letter}{number}");
            let found = table.iter().filter(|cells| cells[0] == row).collect::<Vec<_>>();
            let [cells] = &found[..] else { panic!("{row} stands in the table {} times", found.len()) };
            let [_, _, answer] = cells[..] else { panic!("{row} has three cells, not {}", cells.len()) };
            let names: Vec<&str> = answer.split('`').skip(1).step_by(2).collect();
            assert!(!names.is_empty() || answer.starts_with("comes with "), "{row} promises nothing");
            for name in names {
                assert!(name.starts_with(&format!("{}_", row.to_lowercase())), "{row} claims {name}");
                assert!(is_test(&sources, name), "{row}: there is no test {name}");
            }
        }
    }
    // And the other way round: no test of a row that the table forgets.
    for line in sources.lines().map(str::trim) {
        let name =
            line.strip_prefix("async ").unwrap_or(line).strip_prefix("fn ").and_then(|l| l.split('(').next());
        let Some(name) = name.filter(|name| is_test(&sources, name)) else { continue };
        let row = name.split('_').next().unwrap_or_default().to_uppercase();
        let is_row =
            row.starts_with(['B', 'S', 'M']) && row.len() > 1 && row[1..].bytes().all(|b| b.is_ascii_digit());
        assert!(!is_row || text.contains(&format!("`{name}`")), "the table forgets {name}");
    }
}
