//! A root filesystem as a tree, the way `tree` draws it.

use super::{Style, printable_bytes};
use crate::cli::size::format_size;
use serde::Serialize;

/// What an entry is.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize)]
#[serde(rename_all = "snake_case")]
pub enum NodeKind {
    Directory,
    File,
    Symlink,
    CharDevice,
    BlockDevice,
    Fifo,
    Socket,
}

/// One entry, its children in the order of their names.
#[derive(Clone, Debug, PartialEq, Eq, Serialize)]
pub struct Node {
    #[serde(serialize_with = "lossy")]
    pub name: Vec<u8>,
    pub kind: NodeKind,
    pub mode: u32,
    pub uid: u32,
    pub gid: u32,
    pub size_bytes: u64,
    /// Where a symbolic link points.
    #[serde(skip_serializing_if = "Option::is_none", serialize_with = "lossy_option")]
    pub target: Option<Vec<u8>>,
    #[serde(skip_serializing_if = "Vec::is_empty")]
    pub children: Vec<Node>,
    /// Whether the directory has entries that were not read because they are too deep.
    #[serde(skip_serializing_if = "std::ops::Not::not")]
    pub more: bool,
}

fn lossy<S: serde::Serializer>(bytes: &[u8], serializer: S) -> Result<S::Ok, S::Error> {
    serializer.serialize_str(&String::from_utf8_lossy(bytes))
}

fn lossy_option<S: serde::Serializer>(bytes: &Option<Vec<u8>>, serializer: S) -> Result<S::Ok, S::Error> {
    lossy(bytes.as_deref().unwrap_or_default(), serializer)
}

/// Draws `root`'s children below `title`.
pub fn render(title: &str, root: &Node, style: &Style) -> String {
    let mut text = format!("{}\n", style.heading(title));
    draw(&root.children, "", style, &mut text);
    text
}

fn draw(nodes: &[Node], indent: &str, style: &Style, text: &mut String) {
    for (at, node) in nodes.iter().enumerate() {
        let last = at + 1 == nodes.len();
        let (branch, below) = if last { ("└── ", "    ") } else { ("├── ", "│   ") };
        text.push_str(&format!("{indent}{branch}{}\n", label(node, style)));
        draw(&node.children, &format!("{indent}{below}"), style, text);
    }
}

fn label(node: &Node, style: &Style) -> String {
    let name = printable_bytes(&node.name);
    match node.kind {
        NodeKind::Directory => {
            let more = if node.more { style.dim(" …") } else { "".into() };
            format!("{}{more}", style.directory(&format!("{name}/")))
        }
        NodeKind::Symlink => {
            let target = printable_bytes(node.target.as_deref().unwrap_or_default());
            format!("{name} -> {target}")
        }
        NodeKind::File => format!("{name} {}", style.dim(&format!("({})", format_size(node.size_bytes)))),
        NodeKind::CharDevice => format!("{name} (character device)"),
        NodeKind::BlockDevice => format!("{name} (block device)"),
        NodeKind::Fifo => format!("{name} (fifo)"),
        NodeKind::Socket => format!("{name} (socket)"),
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::cli::args::ColorMode;

    fn node(name: &str, kind: NodeKind, children: Vec<Node>) -> Node {
        let target = (kind == NodeKind::Symlink).then(|| b"usr/lib".to_vec());
        let name = name.as_bytes().to_vec();
        Node { name, kind, mode: 0o755, uid: 0, gid: 0, size_bytes: 5, target, children, more: false }
    }

    #[test]
    fn the_tree_is_drawn_with_its_branches() {
        let mut deep = node("deep", NodeKind::Directory, vec![]);
        deep.more = true;
        let etc = node("etc", NodeKind::Directory, vec![deep, node("passwd", NodeKind::File, vec![])]);
        let root = node("", NodeKind::Directory, vec![etc, node("lib", NodeKind::Symlink, vec![])]);
        let text = render("alpine", &root, &Style::new(ColorMode::Never, false));
        let expected = "alpine\n├── etc/\n│   ├── deep/ …\n│   └── passwd (5 B)\n└── lib -> usr/lib\n";
        assert_eq!(text, expected);
    }
}
