"""What this host is made of, in the schema's words."""

from __future__ import annotations

from typing import Any

from ramet.vsphere.inventory.cpu_features import cpu_features
from ramet.vsphere.inventory.host_facts import HostFacts, HostNic
from ramet.vsphere.types import vim


def hardware_info(facts: HostFacts) -> Any:
    hz = facts.cpu_mhz * 1_000_000
    return vim.host.HardwareInfo(
        systemInfo=vim.host.SystemInfo(
            vendor=facts.vendor, model=facts.model, uuid=facts.uuid, serialNumber=facts.serial or None
        ),
        cpuInfo=vim.host.CpuInfo(
            numCpuPackages=facts.packages, numCpuCores=facts.cores, numCpuThreads=facts.threads, hz=hz
        ),
        cpuPkg=[_package(facts, index, hz) for index in range(facts.packages)],
        memorySize=facts.memory_bytes,
        numaInfo=vim.host.NumaInfo(type="NUMA" if facts.numa_nodes > 1 else "NONE", numNodes=facts.numa_nodes),
        cpuFeature=cpu_features(facts.cpu),
        smcPresent=False,
        biosInfo=vim.host.BIOSInfo(biosVersion=facts.bios_version, vendor=facts.bios_vendor),
    )


def _package(facts: HostFacts, index: int, hz: int) -> Any:
    share = max(1, facts.threads // facts.packages)
    return vim.host.CpuPackage(
        index=index,
        vendor=facts.cpu_vendor,
        hz=hz,
        busHz=0,
        description=facts.cpu_model,
        threadId=list(range(index * share, (index + 1) * share)),
        cpuFeature=cpu_features(facts.cpu),
    )


def hardware_summary(facts: HostFacts) -> Any:
    return vim.host.Summary.HardwareSummary(
        vendor=facts.vendor,
        model=facts.model,
        uuid=facts.uuid,
        memorySize=facts.memory_bytes,
        cpuModel=facts.cpu_model,
        cpuMhz=facts.cpu_mhz,
        numCpuPkgs=facts.packages,
        numCpuCores=facts.cores,
        numCpuThreads=facts.threads,
        numNics=len(facts.nics),
        numHBAs=0,
    )


def network_info(facts: HostFacts, port_groups: list[str]) -> Any:
    """Each port group is a bridge of its own, which stands here as a switch of the same name."""
    return vim.host.NetworkInfo(
        vswitch=[_switch(name) for name in port_groups],
        portgroup=[_port_group(name) for name in port_groups],
        pnic=[_physical_nic(nic) for nic in facts.nics],
        vnic=[],
        consoleVnic=[],
        dnsConfig=vim.host.DnsConfig(
            dhcp=False, hostName=facts.name.partition(".")[0], domainName=facts.name.partition(".")[2]
        ),
        ipV6Enabled=False,
    )


def _policy() -> Any:
    return vim.host.NetworkPolicy(
        security=vim.host.NetworkPolicy.SecurityPolicy(allowPromiscuous=False, macChanges=False, forgedTransmits=False)
    )


def _switch(name: str) -> Any:
    return vim.host.VirtualSwitch(
        name=name,
        key=f"key-vim.host.VirtualSwitch-{name}",
        numPorts=1024,
        numPortsAvailable=1024,
        mtu=1500,
        portgroup=[f"key-vim.host.PortGroup-{name}"],
        spec=vim.host.VirtualSwitch.Specification(numPorts=1024, policy=_policy(), mtu=1500),
    )


def _port_group(name: str) -> Any:
    return vim.host.PortGroup(
        key=f"key-vim.host.PortGroup-{name}",
        vswitch=f"key-vim.host.VirtualSwitch-{name}",
        computedPolicy=_policy(),
        spec=vim.host.PortGroup.Specification(name=name, vlanId=0, vswitchName=name, policy=_policy()),
    )


def _physical_nic(nic: HostNic) -> Any:
    speed = nic.speed_mbit
    return vim.host.PhysicalNic(
        key=f"key-vim.host.PhysicalNic-{nic.name}",
        device=nic.name,
        pci=nic.pci,
        driver=nic.driver,
        mac=nic.mac,
        linkSpeed=vim.host.PhysicalNic.LinkSpeedDuplex(speedMb=speed, duplex=True) if speed else None,
        spec=vim.host.PhysicalNic.Specification(ip=vim.host.IpConfig(dhcp=False)),
        wakeOnLanSupported=False,
    )
