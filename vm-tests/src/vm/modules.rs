//! A kernel's modules: which files are wanted for a list of names, in the order in which they can be loaded.

use std::collections::{BTreeMap, BTreeSet};

use anyhow::{Result, bail};

/// What `depmod` found out about one kernel.
#[derive(Debug, Default)]
pub struct Modules {
    /// Path of each module, by name.
    paths: BTreeMap<String, String>,
    /// What each path needs, all the way down, nearest first.
    needs: BTreeMap<String, Vec<String>>,
    builtin: BTreeSet<String>,
}

impl Modules {
    /// From `modules.dep` and `modules.builtin`.
    pub fn parse(dep: &str, builtin: &str) -> Self {
        let mut modules = Self { builtin: builtin.lines().map(name).collect(), ..Self::default() };
        for (path, needs) in dep.lines().filter_map(|line| line.split_once(':')) {
            modules.paths.insert(name(path), path.to_owned());
            modules.needs.insert(path.to_owned(), needs.split_whitespace().map(str::to_owned).collect());
        }
        modules
    }

    /// The files for these names and all they need, each after what it needs. What is built in needs no file; without a name that
    /// ends in `?` it goes, too.
    ///
    /// # Errors
    /// When the kernel has none of a name, neither as a file nor built in.
    pub fn in_order(&self, names: &[String]) -> Result<Vec<String>> {
        let mut order = Vec::new();
        for wanted in names {
            let (wanted, is_needed) = wanted.strip_suffix('?').map_or((wanted.as_str(), true), |wanted| (wanted, false));
            let wanted = name(wanted);
            match self.paths.get(&wanted) {
                Some(path) => self.add(path, &mut order),
                None if self.builtin.contains(&wanted) || !is_needed => {}
                None => bail!("this kernel has no module {wanted}"),
            }
        }
        Ok(order)
    }

    /// What is farthest down the line of needs comes first.
    fn add(&self, path: &str, order: &mut Vec<String>) {
        let needs = self.needs.get(path).map(Vec::as_slice).unwrap_or_default();
        for path in needs.iter().rev().map(String::as_str).chain([path]) {
            if !order.iter().any(|there| there == path) {
                order.push(path.to_owned());
            }
        }
    }
}

/// `kernel/net/sched/act_mirred.ko.xz` is `act_mirred`; a dash in a name is as good as an underscore.
fn name(path: &str) -> String {
    let file = path.rsplit('/').next().unwrap_or(path);
    file.split(".ko").next().unwrap_or(file).replace('-', "_")
}

#[cfg(test)]
mod tests {
    use super::*;

    const DEP: &str = "kernel/net/ipv4/udp_tunnel.ko.xz:\nkernel/lib/crc.ko:\n\
                       kernel/drivers/net/vxlan/vxlan.ko.xz: kernel/net/ipv6/ip6-udp.ko.xz kernel/net/ipv4/udp_tunnel.ko.xz\n\
                       kernel/net/ipv6/ip6-udp.ko.xz: kernel/net/ipv4/udp_tunnel.ko.xz\n";

    fn order(names: &[&str]) -> Result<Vec<String>> {
        let names: Vec<_> = names.iter().map(ToString::to_string).collect();
        Modules::parse(DEP, "kernel/drivers/net/veth.ko\n").in_order(&names)
    }

    #[test]
    fn what_a_module_needs_comes_before_it_and_once() {
        let files = order(&["vxlan", "ip6_udp"]).unwrap();
        assert_eq!(files, ["kernel/net/ipv4/udp_tunnel.ko.xz", "kernel/net/ipv6/ip6-udp.ko.xz", "kernel/drivers/net/vxlan/vxlan.ko.xz"]);
    }

    #[test]
    fn what_is_built_in_needs_no_file_and_what_is_nowhere_is_an_error() {
        assert_eq!(order(&["veth", "crc"]).unwrap(), ["kernel/lib/crc.ko"]);
        assert!(order(&["netkit?"]).unwrap().is_empty());
        assert_eq!(order(&["netkit"]).unwrap_err().to_string(), "this kernel has no module netkit");
    }
}
