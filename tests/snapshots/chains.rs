//! Chains of layers that depend on each other: links to what is below, names that change what they are, and chains made by chance.

use super::{assert_gone, assert_line, everywhere, root, try_everywhere};
use crate::support::chains::{chain, outline, seeds};
use crate::support::image::{Layer, dir, file, layer};
use transload::ErrorKind;

fn line<'a>(lines: &'a [String], name: &str) -> &'a str {
    let start = format!("{name} ");
    lines
        .iter()
        .find(|line| line.starts_with(&start))
        .unwrap_or_else(|| panic!("no {name}:\n{}", lines.join("\n")))
}

/// overlayfs merges the roots of all layers, whatever mark they have.
#[test]
fn an_opaque_mark_on_a_root_hides_nothing_however_one_looks() {
    if !root() {
        return;
    }
    let base = file("low", "1").file("d/low", "1");
    let seen = everywhere("opaque root", &[base.clone(), layer().opaque("").file("new", "2")]);
    assert_line(&seen, "low file");
    assert_line(&seen, "d/low file");
    assert_line(&seen, "new file");
    let seen = everywhere("opaque root of the lowest layer", &[layer().opaque("").file("new", "2"), base]);
    assert_line(&seen, "new file");
}

#[test]
fn a_link_to_a_lower_file_takes_the_place_of_a_lower_directory() {
    if !root() {
        return;
    }
    let base = dir("a").file("a/x", "1").dir("a/deep").file("a/deep/y", "2").file("f", "3");
    let seen = everywhere("link over directory", &[base, layer().hardlink("a", "f")]);
    assert!(line(&seen, "f").ends_with("same as a") || line(&seen, "a").ends_with("same as a"), "{seen:?}");
    assert_gone(&seen, "a/x");
    assert_gone(&seen, "a/deep");
}

/// When the link came the file below was the one of that name.
#[test]
fn a_link_means_the_lower_file_even_if_its_layer_has_that_name_later() {
    if !root() {
        return;
    }
    let base = file("a", "old");
    let seen = everywhere("then a file", &[base.clone(), layer().hardlink("b", "a").file("a", "newer")]);
    assert!(line(&seen, "b").contains(" 3 ") && !line(&seen, "b").contains("same"), "{seen:?}");
    assert!(line(&seen, "a").contains(" 5 "), "{seen:?}");
    let seen = everywhere("then a directory", &[base.clone(), layer().hardlink("b", "a").file("a/in", "2")]);
    assert_line(&seen, "b file");
    assert_line(&seen, "a/in file");
    // The names are exchanged, by way of a third one.
    let base = base.file("z", "another");
    let swapped = layer().hardlink("b", "a").hardlink("a", "z").hardlink("z", "b");
    let seen = everywhere("exchanged", &[base, swapped]);
    assert!(line(&seen, "a").contains(" 7 ") && line(&seen, "z").contains(" 3 "), "{seen:?}");
    assert!(line(&seen, "z").ends_with("same as b") || line(&seen, "b").contains("same as"), "{seen:?}");
}

#[test]
fn a_link_to_what_comes_later_is_that_file_where_nothing_below_has_the_name() {
    if !root() {
        return;
    }
    let links = layer().hardlink("b", "a").hardlink("c", "b").file("a", "1").hardlink("d", "a");
    let seen = everywhere("forward", &[links.clone(), file("other", "2")]);
    for name in ["b", "c", "d"] {
        assert!(line(&seen, name).contains("same as"), "{seen:?}");
    }
    assert_eq!(seen, everywhere("forward", &[file("other", "2"), links]));
}

/// The file of the link had a second name, by which it still shows.
#[test]
fn a_link_to_a_deleted_name_stays_one_file_with_its_other_names() {
    if !root() {
        return;
    }
    let base = file("a", "1").hardlink("z", "a");
    let seen = everywhere("second name", &[base, layer().hardlink("b", "a").whiteout("a")]);
    assert_gone(&seen, "a");
    assert!(line(&seen, "z").contains("same as") && line(&seen, "b").contains("same as"), "{seen:?}");
}

#[test]
fn a_link_through_a_loop_of_symlinks_below_is_the_layers_fault() {
    if !root() {
        return;
    }
    let layers = [layer().symlink("x", "y").symlink("y", "x"), layer().hardlink("l", "x/a")];
    let error = try_everywhere("loop", &layers).expect_err("refused");
    assert!(error.kind() == ErrorKind::Malformed && error.to_string().contains("symlinks"), "{error}");
}

/// A loop, if the name of the linked file were followed in the layers as they are with that layer.
#[test]
fn a_link_to_a_file_whose_directory_becomes_a_symlink_is_that_file() {
    if !root() {
        return;
    }
    let change = layer().hardlink("b", "c/a").symlink("c", "/c/d");
    let seen = everywhere("symlink instead", &[file("c/a", "1"), change]);
    assert_line(&seen, "b file");
    assert_line(&seen, "c link");
}

fn tried(what: &str, wild: bool, seeds: std::ops::Range<u64>) {
    let mut made = 0;
    for seed in seeds.clone() {
        let layers: Vec<Layer> = chain(seed, wild);
        let what = format!("{what} chain {seed} ({})", outline(&layers));
        match try_everywhere(&what, &layers) {
            Ok(_) => made += 1,
            Err(error) => {
                assert!(error.kind().is_input(), "{what}: {error}");
                assert!(wild, "{what}: {error}");
            }
        }
    }
    assert!(made * 4 > seeds.count(), "{what}: {made} chains could be made");
}

/// `TRANSLOAD_SEED` says where to begin, `TRANSLOAD_TORTURE` makes it a thousand.
#[test]
fn chains_made_by_chance_show_one_tree_however_one_looks() {
    if !root() {
        return;
    }
    tried("a tame", false, seeds(40, 1000));
    tried("a wild", true, seeds(60, 1000));
}
