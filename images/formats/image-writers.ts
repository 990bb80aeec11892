export const IMAGE_WRITERS: Record<string, (disk: BlockDevice) => Promise<BlockDevice>> = {}
import type { BlockDevice } from '../device/block-device.ts'
